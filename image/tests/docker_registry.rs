//! Against a real registry, with skopeo as the judge.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::Read;
use std::path::Path;
use std::process::Command;

use layerfs_image::digest::{Digest, Hasher};
use layerfs_image::media_type::OCI_MANIFEST;
use layerfs_image::registry::{
    Client, ClientOptions, Credentials, Environment, ErrorKind, KeptIn, SearchFilter, Uploaded, Which,
};
use support::registry::{DockerRegistry, PASSWORD, Tls, USER, program_exists};
use support::{content, manifest, options, repository};

/// Pushes an image of one layer, and gives its manifest's digest.
fn push(options: ClientOptions, name: &str, tag: &str, layer: &[u8]) -> Digest {
    let config =
        br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    let repository = repository(options, name);
    for blob in [&config[..], layer] {
        repository.push_blob(&Digest::of(blob), blob.len() as u64, blob, &[], &mut |_| {}).unwrap();
    }
    let manifest = manifest(config, layer);
    repository.put_manifest(&Which::Tag(tag.into()), OCI_MANIFEST, &manifest).unwrap()
}

fn skopeo(arguments: &[&str]) -> Option<String> {
    if !program_exists("skopeo") {
        return None;
    }
    let output = Command::new("skopeo").args(arguments).output().unwrap();
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_is_pushed_is_what_skopeo_sees_and_what_comes_back() {
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let name = format!("{}/some/tool", registry.host());
    for (tag, chunk_size, len) in
        [("whole", None, 300_000), ("pieces", Some(70_000), 300_001), ("empty", None, 0)]
    {
        let layer = content(len, len as u32);
        let digest = push(ClientOptions { chunk_size, ..options() }, &name, tag, &layer);
        let target = format!("docker://{name}:{tag}");
        if let Some(seen) = skopeo(&["inspect", "--tls-verify=false", "--raw", &target]) {
            assert_eq!(Digest::of(&seen), digest, "{tag}");
        }
        let repository = repository(options(), &name);
        let fetched = repository.manifest(&Which::Tag(tag.into())).unwrap();
        assert_eq!((fetched.digest, fetched.media_type.as_str()), (digest, OCI_MANIFEST));
        assert_eq!(repository.manifest(&Which::Digest(digest)).unwrap(), fetched);
        assert_eq!(repository.manifest_digest(&Which::Tag(tag.into())).unwrap(), Some(digest));
        let blob = Digest::of(&layer);
        let mut read = Vec::new();
        repository.blob(&blob, Some(len as u64)).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, layer);
        assert_eq!(repository.blob_size(&blob).unwrap(), Some(len as u64));
    }
    let repository = repository(options(), &name);
    let mut tags = repository.tags().unwrap();
    tags.sort();
    assert_eq!(tags, ["empty", "pieces", "whole"]);
    assert_eq!(repository.manifest_digest(&Which::Tag("none".into())).unwrap(), None);
    assert!(repository.manifest(&Which::Tag("none".into())).unwrap_err().is_not_found());
    assert!(repository.blob(&Digest::of("none"), None).unwrap_err().is_not_found());
}

/// A blob that is half here already needs only its other half.
#[test]
fn a_blob_is_read_from_the_middle() {
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let name = format!("{}/tool", registry.host());
    let layer = content(100_000, 5);
    push(options(), &name, "x", &layer);
    let digest = Digest::of(&layer);
    for offset in [1, 50_000, 99_999, 100_000] {
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&layer[..offset]);
        let mut rest = Vec::new();
        let repository = repository(options(), &name);
        let mut reader = repository.blob_from(&digest, Some(100_000), offset as u64, hasher).unwrap();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, &layer[offset..], "{offset}");
    }
}

#[test]
fn blobs_are_not_sent_twice_and_are_mounted_from_other_repositories() {
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let layer = content(10_000, 6);
    let digest = Digest::of(&layer);
    let push = |name: &str, from: &[String]| {
        let repository = repository(options(), &format!("{}/{name}", registry.host()));
        repository.push_blob(&digest, 10_000, &layer[..], from, &mut |_| {}).unwrap()
    };
    assert_eq!(push("first", &["absent".into()]), Uploaded::Sent);
    assert_eq!(push("first", &[]), Uploaded::Existed);
    assert_eq!(push("second", &["absent".into(), "first".into()]), Uploaded::Mounted);
    assert_eq!(push("third", &[]), Uploaded::Sent);
}

#[test]
fn lists_come_whole_whatever_the_size_of_a_page() {
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host();
    for name in ["a/one", "a/two", "b/one", "three"] {
        push(options(), &format!("{host}/{name}"), "x", b"layer");
    }
    let client = Client::new(options()).unwrap();
    let found = |term: &str, limit| {
        let results = client.search(&format!("{host}/{term}"), limit, &SearchFilter::default()).unwrap();
        results.into_iter().map(|result| result.name).collect::<Vec<_>>()
    };
    assert_eq!(found("one", 25), [format!("{host}/a/one"), format!("{host}/b/one")]);
    assert_eq!(found("", 3).len(), 3);
    assert!(found("none", 25).is_empty());
}

#[test]
fn a_registry_with_a_password_wants_a_login() {
    let Some(registry) = DockerRegistry::start(true, None) else { return };
    let host = registry.host();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let with_config = || ClientOptions {
        environment: Environment { docker_config: Some(config.clone()), ..Environment::default() },
        ..options()
    };
    let client = Client::new(with_config()).unwrap();
    let name = format!("{host}/tool");

    let denied = repository(with_config(), &name).tags().unwrap_err();
    assert!(denied.is_denied(), "{denied}");
    assert_eq!(
        denied.hint().as_deref(),
        Some(&*format!("the repository may be private or not exist: layerfs login {host}"))
    );
    let wrong = client.login(&host, &Credentials::password(USER, "wrong")).unwrap_err();
    assert!(wrong.is_denied(), "{wrong}");
    assert!(!config.exists(), "wrong credentials were kept");

    let logged_in = client.login(&host, &Credentials::password(USER, PASSWORD)).unwrap();
    assert!(logged_in.checked);
    assert_eq!(logged_in.kept, KeptIn::File(config.clone()));
    let digest = push(with_config(), &name, "x", &content(200_000, 9));
    let authfile = config.to_str().unwrap();
    let target = format!("docker://{name}:x");
    if let Some(seen) = skopeo(&["inspect", "--tls-verify=false", "--authfile", authfile, "--raw", &target]) {
        assert_eq!(Digest::of(&seen), digest);
    }
    assert!(client.logout(&host).unwrap());
    assert!(!client.logout(&host).unwrap());
    assert!(repository(with_config(), &name).tags().unwrap_err().is_denied());
    let given = ClientOptions { credentials: Some(Credentials::password(USER, PASSWORD)), ..options() };
    assert_eq!(repository(given, &name).tags().unwrap(), ["x"]);
}

/// Makes an authority and a server certificate of it for this machine.
fn certificates(dir: &Path) -> bool {
    if !program_exists("openssl") {
        return false;
    }
    let script = "set -e; cd \"$1\"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ca \
            -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.crt
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server \
            -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1,IP:0.0.0.0' > ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out server.crt";
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// By the address 0.0.0.0, which is this machine too but is not taken for loopback, trust is needed.
#[test]
fn tls_needs_the_authority_of_certs_d() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        return;
    }
    let (certificate, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
    let tls = Tls { certificate: &certificate, key: &key };
    let Some(registry) = DockerRegistry::start(false, Some(tls)) else { return };
    let host = registry.host().replace("127.0.0.1", "0.0.0.0");
    let name = format!("{host}/tool");
    let certs = dir.path().join("certs.d");
    let host_dir = certs.join(&host);
    std::fs::create_dir_all(&host_dir).unwrap();
    let environment = Environment { certificate_dirs: vec![certs], ..Environment::default() };
    let trusting = || ClientOptions { environment: environment.clone(), ..options() };

    let error = repository(trusting(), &name).tags().unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Tls { .. }), "{error}");
    assert!(error.hint().unwrap().contains(&format!("/etc/containers/certs.d/{host}/ca.crt")), "{error}");

    std::fs::copy(dir.path().join("ca.crt"), host_dir.join("ca.crt")).unwrap();
    push(trusting(), &name, "x", b"layer");
    assert_eq!(repository(trusting(), &name).tags().unwrap(), ["x"]);
    let insecure = ClientOptions { insecure: vec![host.clone()], ..options() };
    assert_eq!(repository(insecure, &name).tags().unwrap(), ["x"]);

    std::fs::copy(&certificate, host_dir.join("client.cert")).unwrap();
    std::fs::copy(&key, host_dir.join("client.key")).unwrap();
    assert_eq!(repository(trusting(), &name).tags().unwrap(), ["x"]);
    std::fs::copy(dir.path().join("ca.key"), host_dir.join("client.key")).unwrap();
    let error = repository(trusting(), &name).tags().unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Config(_)), "{error}");
    assert!(error.to_string().contains("client.key"), "{error}");
}

/// docker's guide has one certificate that is its own authority; skopeo and curl take it where it is configured.
#[test]
fn regression_a_self_signed_certificate_is_trusted_where_it_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, address: &str| {
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=own \
            -addext subjectAltName=IP:$3 -keyout \"$1/$2.key\" -out \"$1/$2.crt\"";
        let output =
            Command::new("sh").args(["-c", script, "sh"]).arg(dir.path()).args([name, address]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    if !program_exists("openssl") {
        return;
    }
    for (name, address) in [("own", "0.0.0.0"), ("other", "0.0.0.0"), ("elsewhere", "10.1.2.3")] {
        make(name, address);
    }
    let start = |name: &str| {
        let path = |kind: &str| dir.path().join(format!("{name}.{kind}"));
        DockerRegistry::start(false, Some(Tls { certificate: &path("crt"), key: &path("key") }))
    };
    let trusted = |registry: &DockerRegistry, certificate: &str| {
        let host = registry.host().replace("127.0.0.1", "0.0.0.0");
        let certs = dir.path().join(format!("certs-{certificate}"));
        std::fs::create_dir_all(certs.join(&host)).unwrap();
        std::fs::copy(dir.path().join(certificate), certs.join(&host).join("ca.crt")).unwrap();
        let environment = Environment { certificate_dirs: vec![certs], ..Environment::default() };
        let client = ClientOptions { environment, ..options() };
        match repository(client, &format!("{host}/tool")).tags() {
            Ok(_) => true,
            // The registry knows no such repository, and has said so.
            Err(error) if matches!(*error.kind, ErrorKind::NotFound(_)) => true,
            Err(error) => {
                assert!(matches!(*error.kind, ErrorKind::Tls { .. }), "{error}");
                false
            }
        }
    };
    let Some(registry) = start("own") else { return };
    assert!(trusted(&registry, "own.crt"));
    assert!(!trusted(&registry, "other.crt"), "another certificate with the same subject");
    drop(registry);
    let Some(registry) = start("elsewhere") else { return };
    assert!(!trusted(&registry, "elsewhere.crt"), "the name in the certificate is another's");
}

#[test]
fn regression_a_registry_without_tls_is_told_as_that() {
    let Some(registry) = DockerRegistry::start(false, None) else { return };
    let host = registry.host().replace("127.0.0.1", "0.0.0.0");
    let error = repository(options(), &format!("{host}/tool")).tags().unwrap_err();
    assert!(error.to_string().contains("answers http, not https"), "{error}");
    assert!(error.hint().unwrap().contains(&format!("--insecure-registry {host}")), "{error}");
}
