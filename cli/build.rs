//! Links the program at a fixed address: `docs/decisions/0012-fixed-address.md`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-no-pie");
}
