//! Networks of containers, and namespaces of others.

use super::world::World;

#[test]
fn containers_reach_each_other_and_are_reached() {
    let Some(world) = World::with_networks() else { return };
    world.ok(&["network", "create", "--subnet", "10.123.0.0/24", "back"]);
    world.ok(&["network", "create", "--subnet", "10.124.0.0/24", "front"]);
    world.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "back",
        "--ip",
        "10.123.0.77",
        "--network-alias",
        "www",
        "--mac-address",
        "02:42:aa:bb:cc:dd",
        "-p",
        "18080:80",
        "box",
        "sh",
        "-c",
        "echo served > /data/index; busybox httpd -f -h /data",
    ]);
    let address = "{{(index .NetworkSettings.Networks \"back\").IPAddress}}";
    assert_eq!(world.inspect("web", address), "10.123.0.77");
    assert_eq!(world.ok(&["port", "web"]), "80/tcp -> 0.0.0.0:18080");
    assert_eq!(world.ok(&["ps", "--format", "{{.Ports}}"]), "0.0.0.0:18080->80/tcp");
    let bound = world.inspect("web", "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}");
    assert_eq!(bound, "18080");
    let get = |network: &str, url: &str| {
        // The server may not listen yet.
        let script = format!("until busybox wget -qO- {url} 2>/dev/null; do busybox usleep 10000; done");
        world.ok(&["run", "--rm", "--network", network, "box", "sh", "-c", &script])
    };
    for name in ["web", "www", "10.123.0.77", "web.back"] {
        assert_eq!(get("back", &format!("http://{name}/index")), "served", "{name}");
    }
    assert_eq!(get("host", "http://127.0.0.1:18080/index"), "served");
    assert_eq!(get("container:web", "http://127.0.0.1/index"), "served");
    let mac = world.ok(&["exec", "web", "cat", "/sys/class/net/eth0/address"]);
    assert_eq!(mac, "02:42:aa:bb:cc:dd");
    // In two networks, from the beginning and later; over a restart.
    let both = world.ok(&[
        "run",
        "--rm",
        "--network",
        "name=front,alias=x",
        "--network",
        "back",
        "box",
        "ls",
        "/sys/class/net",
    ]);
    assert_eq!(both, "eth0\neth1\nlo");
    world.ok(&["network", "connect", "--alias", "second", "front", "web"]);
    assert_eq!(get("front", "http://second/index"), "served");
    world.ok(&["restart", "-t", "0", "web"]);
    assert_eq!(get("front", "http://second/index"), "served");
    world.ok(&["network", "disconnect", "front", "web"]);
    assert_ne!(world.layerfs(&["network", "disconnect", "front", "web"]).code, 0);
    // A port that is taken is not published twice, and what failed holds nothing.
    let taken = world.layerfs(&["run", "--rm", "-p", "18080:80", "box"]);
    assert!(taken.code == 125 && taken.stderr.contains("18080"), "{taken:?}");
    world.ok(&["rm", "-f", "web"]);
    assert_eq!(world.ok(&["run", "--rm", "-p", "18080:80", "box"]), "from the image");
    world.ok(&["network", "rm", "front", "back"]);
    for (arguments, words) in [
        (&["create", "--network", "nosuch", "box"][..], "nosuch"),
        (&["create", "--network", "container:nosuch", "box"], "No such container"),
        (&["create", "--ip", "10.88.0.9", "box"], "user defined networks only"),
        (&["create", "--network", "none", "-p", "80:80", "box"], "from a network only"),
        (&["create", "--network", "host", "--ip", "10.0.0.1", "box"], "no names and addresses"),
        (&["create", "--mac-address", "xx", "box"], "mac address"),
    ] {
        let output = world.layerfs(arguments);
        assert!(output.code != 0 && output.stderr.contains(words), "{arguments:?}: {output:?}");
    }
    assert_eq!(world.containers().len(), 0);
}

#[test]
fn namespaces_of_another_container_are_joined() {
    let Some(world) = World::new() else { return };
    world.ok(&["run", "-d", "--name", "one", "box", "sh", "-c", "echo in memory > /dev/shm/x; sleep 1000"]);
    let mut options =
        vec!["run", "--rm", "--pid", "container:one", "--ipc", "container:one", "--network", "container:one"];
    options.extend(["box", "sh", "-c", "until cat /dev/shm/x; do :; done; cat /proc/1/comm; hostname"]);
    let output = world.ok(&options);
    assert!(output.starts_with("in memory\n"), "{output}");
    assert!(output.ends_with(&world.inspect("one", "{{.Config.Hostname}}")), "{output}");
    world.ok(&["create", "--name", "two", "--network", "container:one", "box"]);
    world.ok(&["stop", "-t", "0", "one"]);
    let refused = world.layerfs(&["start", "two"]);
    assert!(refused.code != 0 && refused.stderr.contains("non running container"), "{refused:?}");
    world.ok(&["rm", "one", "two"]);
}

#[test]
fn regression_names_in_networks_follow_the_container() {
    let Some(world) = World::with_networks() else { return };
    world.ok(&["network", "create", "n1"]);
    let sleeps = |name: &str, network: &str| {
        world.ok(&["run", "-d", "--name", name, "--network", network, "box", "sleep", "1000"]);
    };
    let asks = |from: &str, name: &str| world.layerfs(&["exec", from, "busybox", "nslookup", name]);
    sleeps("web", "n1");
    sleeps("asks", "n1");
    let address = world.inspect("web", "{{.NetworkSettings.Networks.n1.IPAddress}}");
    // Another name, while it runs: the old one may be another's.
    world.ok(&["rename", "web", "old"]);
    let found = asks("asks", "old");
    assert!(found.stdout.contains(&address), "{found:?}");
    let found = asks("asks", "web");
    assert!(!found.stdout.contains(&address), "{found:?}");
    // The default network has no names; one that it is put into has.
    sleeps("plain", "bridge");
    world.ok(&["network", "connect", "n1", "plain"]);
    let found = asks("plain", "old");
    assert!(found.stdout.contains(&address), "{found:?}");
}
