//! What an attachment costs: prints medians in microseconds. Works in a network namespace of its own; needs root.
//!
//! usage: cargo run --release -p layerfs-network --example attach_cost [ROUNDS]

use std::error::Error;
use std::os::fd::AsFd;
use std::time::Instant;

use layerfs_network::{Namespace, Networks, Options, Request, namespace, ports};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(50), |text| text.parse())?;
    let host = namespace::create()?;
    move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network))?;
    let root = std::env::temp_dir().join(format!("layerfs-attach-cost-{}", std::process::id()));
    let options =
        Options { instance: String::new(), responder: None, now: || "2000-01-01T00:00:00Z".to_owned() };
    let networks = Networks::open(&root, options)?;
    let ports = ports::parse_publish("80")?;
    // One container stays, as on a machine in use; or none, and bridge and packet filter come and go each time.
    for (title, stays, published) in
        [("alone", false, false), ("beside another", true, false), ("alone, one port", false, true)]
    {
        let attach = |id: &str, namespace: &std::os::fd::OwnedFd, published: bool| {
            networks.attach(&Request {
                container: id,
                names: &[],
                network: "bridge",
                namespace: Namespace::Descriptor(namespace.as_fd()),
                ports: if published { &ports } else { &[] },
                ipv4: None,
                ipv6: None,
                mac: None,
                dns: &[],
            })
        };
        let resident = namespace::create()?;
        if stays {
            attach("resident", &resident, false)?;
        }
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..rounds {
            let start = Instant::now();
            let own = namespace::create()?;
            let created = Instant::now();
            attach("measured", &own, published)?;
            let attached = Instant::now();
            networks.detach("measured", None)?;
            let detached = Instant::now();
            times[0].push((created - start).as_micros());
            times[1].push((attached - created).as_micros());
            times[2].push((detached - attached).as_micros());
        }
        networks.detach("resident", None)?;
        let median = |times: &mut Vec<u128>| {
            times.sort_unstable();
            times.get(times.len() / 2).copied().unwrap_or(0)
        };
        let [namespace, attach, detach] = &mut times;
        let (namespace, attach, detach) = (median(namespace), median(attach), median(detach));
        println!("{title}: namespace {namespace} us, attach {attach} us, detach {detach} us");
    }
    std::fs::remove_dir_all(&root)?;
    Ok(())
}
