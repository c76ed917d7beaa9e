//! Networks in the kernel. Each test has a "host" of its own: a network namespace, in which its thread stays.

mod cleaning;
mod connecting;
mod naming;
mod world;
