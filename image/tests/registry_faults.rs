//! Registries that fail: each fault is survived, or refused in words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use layerfs_image::Error;
use layerfs_image::digest::{DiffId, Digest};
use layerfs_image::layer::WithoutIndex;
use layerfs_image::media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use layerfs_image::reference::Reference;
use layerfs_image::registry::{
    Client, ClientOptions, Credentials, Environment, ErrorKind, Platform, RegistryError, RetryPolicy,
    Uploaded, Which,
};
use layerfs_image::store::Store;
use layerfs_image::tar::TarWriter;
use layerfs_image::transfer::{Pulled, Silent, pull};
use support::fault::{FaultServer, Reply, Request};
use support::{content, manifest, options, repository};

/// Reads the blob of `content` from `server`.
fn read_blob(server: &FaultServer, content: &[u8]) -> Result<Vec<u8>, RegistryError> {
    read_blob_with(options(), server, content)
}

fn read_blob_with(
    options: ClientOptions,
    server: &FaultServer,
    content: &[u8],
) -> Result<Vec<u8>, RegistryError> {
    let repository = repository(options, &format!("{}/tool", server.host()));
    let mut reader = repository.blob(&Digest::of(content), Some(content.len() as u64))?;
    let mut read = Vec::new();
    match reader.read_to_end(&mut read) {
        Ok(_) => Ok(read),
        Err(error) => Err(*error.into_inner().unwrap().downcast::<RegistryError>().unwrap()),
    }
}

/// A part from `start`, or the whole.
fn part(request: &Request, content: &[u8]) -> Reply {
    match request.range_start() {
        Some(start) => Reply::new(206)
            .header("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len()))
            .body(&content[start..]),
        None => Reply::new(200).body(content),
    }
}

fn is_blob(request: &Request) -> bool {
    request.method == "GET" && request.target.contains("/blobs/sha256:")
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let blob = content(500_000, 1);
    let whole = blob.clone();
    let server = FaultServer::start(move |request| {
        is_blob(request).then(|| {
            let reply = part(request, &whole);
            // Each connection brings 70,000 bytes; the last one the rest.
            if request.range_start().unwrap_or(0) < 400_000 { reply.cut(70_000) } else { reply }
        })
    });
    assert_eq!(read_blob(&server, &blob).unwrap(), blob);
    assert!(server.requests().len() >= 6, "{:?}", server.requests());
}

#[test]
fn a_cut_at_every_place_of_a_small_blob_is_survived() {
    let blob = content(40, 2);
    for cut in 0..=blob.len() {
        let (whole, count) = (blob.clone(), AtomicU32::new(0));
        let server = FaultServer::start(move |request| {
            is_blob(request).then(|| {
                let reply = part(request, &whole);
                if count.fetch_add(1, Ordering::SeqCst) == 0 { reply.cut(cut) } else { reply }
            })
        });
        assert_eq!(read_blob(&server, &blob).unwrap(), blob, "cut at {cut}");
    }
}

#[test]
fn a_server_without_ranges_is_read_again_from_the_start() {
    let blob = content(100_000, 3);
    let (whole, count) = (blob.clone(), AtomicU32::new(0));
    let server = FaultServer::start(move |request| {
        is_blob(request).then(|| {
            let reply = Reply::new(200).body(&whole);
            if count.fetch_add(1, Ordering::SeqCst) < 3 { reply.cut(30_000) } else { reply }
        })
    });
    // The attempts without progress are counted: the skipped part is none.
    assert_eq!(read_blob(&server, &blob).unwrap(), blob);
}

#[test]
fn a_server_that_cuts_without_end_is_given_up_in_words() {
    let blob = content(1000, 4);
    let whole = blob.clone();
    let server = FaultServer::start(move |request| {
        is_blob(request).then(|| {
            if request.range_start().is_some() { Reply::hang_up() } else { part(request, &whole).cut(100) }
        })
    });
    let error = read_blob(&server, &blob).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Connect { .. }), "{error}");
    let words = error.to_string();
    assert!(
        words.contains(&server.host()) && words.contains("/tool") && words.contains("byte 100"),
        "{words}"
    );
}

#[test]
fn passing_failures_are_passed_over() {
    let blob = content(1000, 5);
    for status in [429, 500, 502, 503, 504] {
        let (whole, count) = (blob.clone(), AtomicU32::new(0));
        let server = FaultServer::start(move |request| {
            is_blob(request).then(|| match count.fetch_add(1, Ordering::SeqCst) {
                0 | 1 => Reply::new(status).header("Retry-After", 0),
                _ => part(request, &whole),
            })
        });
        assert_eq!(read_blob(&server, &blob).unwrap(), blob, "{status}");
    }
}

#[test]
fn lasting_failures_are_told() {
    let blob = content(10, 6);
    let server = FaultServer::start(|request| {
        is_blob(request).then(|| {
            Reply::new(429).header("Retry-After", 3600).body(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#)
        })
    });
    let error = read_blob(&server, &blob).unwrap_err();
    assert_eq!(server.requests().len(), 1, "an hour was not waited for, and yet it was asked again");
    assert!(error.to_string().contains("3600 s"), "{error}");

    let server =
        FaultServer::start(|request| is_blob(request).then(|| Reply::new(500).body("disk \u{1b}[2J full")));
    let error = read_blob(&server, &blob).unwrap_err();
    assert_eq!(server.requests().len(), 4);
    assert!(error.to_string().contains("500") && error.to_string().contains("disk  [2J full"), "{error}");
}

#[test]
fn wrong_bytes_are_refused_at_the_end() {
    let blob = content(1000, 7);
    let mut wrong = blob.clone();
    wrong[999] ^= 1;
    let server = FaultServer::start(move |request| is_blob(request).then(|| part(request, &wrong)));
    let error = read_blob(&server, &blob).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::WrongDigest { .. }), "{error}");
    assert!(error.to_string().contains(&Digest::of(&blob).to_string()), "{error}");
}

#[test]
fn wrong_lengths_are_refused() {
    let blob = content(1000, 8);
    for (len, announced) in [(999, 999), (1001, 1001), (2000, 2000), (0, 0)] {
        let mut wrong = blob.clone();
        wrong.resize(len, 0);
        let server = FaultServer::start(move |request| {
            is_blob(request).then(|| Reply::new(200).body(&wrong).length(announced))
        });
        let error = read_blob(&server, &blob).unwrap_err();
        assert!(matches!(*error.kind, ErrorKind::WrongLength { .. }), "{len}: {error}");
    }
}

#[test]
fn a_range_from_elsewhere_is_refused() {
    let blob = content(1000, 9);
    let whole = blob.clone();
    let server = FaultServer::start(move |request| {
        is_blob(request).then(|| match request.range_start() {
            None => part(request, &whole).cut(100),
            Some(_) => Reply::new(206).header("Content-Range", "bytes 200-999/1000").body(&whole[200..]),
        })
    });
    let error = read_blob(&server, &blob).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Protocol { .. }), "{error}");
}

/// As with storage in a cloud: the registry sends on to another host, which must not see its credentials.
#[test]
fn a_redirect_does_not_take_credentials_along() {
    let blob = content(1000, 10);
    let whole = blob.clone();
    let storage = FaultServer::start(move |request| {
        assert_eq!(request.header("authorization"), None, "credentials leaked");
        Some(part(request, &whole))
    });
    let target = format!("http://{}/store/x?signature=1", storage.host());
    let registry = FaultServer::start(move |request| {
        let authorized = request.header("authorization").is_some_and(|value| value.starts_with("Basic "));
        if !authorized {
            return Some(Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        is_blob(request).then(|| Reply::new(307).header("Location", &target))
    });
    let given = ClientOptions { credentials: Some(Credentials::password("u", "p")), ..options() };
    assert_eq!(read_blob_with(given, &registry, &blob).unwrap(), blob);
    assert_eq!(storage.requests(), ["GET /store/x?signature=1"]);
}

#[test]
fn regression_a_redirect_does_not_take_a_refresh_token_along() {
    for status in [307, 308] {
        let other = FaultServer::start(|_| Some(Reply::new(200).body(r#"{"access_token":"a"}"#)));
        let target = format!("http://{}/token", other.host());
        let host = std::sync::Arc::new(Mutex::new(String::new()));
        let realm_host = host.clone();
        let server = FaultServer::start(move |request| {
            let own = format!("http://{}/", realm_host.lock().unwrap());
            match &*request.target {
                // Within the server it is followed, with the token.
                "/token" => Some(Reply::new(status).header("Location", format!("{own}moved"))),
                "/moved" => {
                    let body = String::from_utf8(request.body(usize::MAX)).unwrap();
                    assert!(body.ends_with("&refresh_token=secret"), "{body}");
                    Some(Reply::new(status).header("Location", &target))
                }
                _ => {
                    let realm = format!("Bearer realm=\"{own}token\"");
                    Some(Reply::new(401).header("WWW-Authenticate", realm))
                }
            }
        });
        *host.lock().unwrap() = server.host();
        let given =
            ClientOptions { credentials: Some(Credentials::IdentityToken("secret".into())), ..options() };
        let error = repository(given, &format!("{}/tool", server.host())).tags().unwrap_err().to_string();
        assert!(error.contains("another server"), "{error}");
        assert_eq!(other.requests(), Vec::<String>::new(), "{status}");
    }
}

#[test]
fn redirects_in_a_circle_end() {
    let server = FaultServer::start(|request| {
        is_blob(request).then(|| Reply::new(302).header("Location", &request.target))
    });
    let error = read_blob(&server, b"x").unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
}

/// Tokens are per scope, are used again, and are renewed when the registry wants others.
#[test]
fn tokens_are_fetched_once_per_scope_and_renewed_when_refused() {
    let blob = content(1000, 11);
    let whole = blob.clone();
    let tokens = std::sync::Arc::new(AtomicU32::new(0));
    let given = tokens.clone();
    let host = std::sync::Arc::new(Mutex::new(String::new()));
    let realm_host = host.clone();
    let server = FaultServer::start(move |request| {
        if request.target.starts_with("/token") {
            assert!(
                request.target.contains("service=reg&scope=repository%3Atool%3Apull"),
                "{}",
                request.target
            );
            assert!(request.target.contains("account=u"), "{}", request.target);
            // base64 of u:p
            assert_eq!(request.header("authorization"), Some("Basic dTpw"));
            let number = given.fetch_add(1, Ordering::SeqCst);
            return Some(Reply::new(200).body(format!(r#"{{"token":"t{number}","expires_in":300}}"#)));
        }
        let current = given.load(Ordering::SeqCst).max(1) - 1;
        // The first token is refused once it was used twice.
        let fine = match request.header("authorization") {
            Some("Bearer t0") => current == 0 && !request.target.contains("late"),
            Some("Bearer t1") => true,
            _ => false,
        };
        if !fine {
            let realm = format!("http://{}/token", realm_host.lock().unwrap());
            let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\"");
            return Some(Reply::new(401).header("WWW-Authenticate", challenge));
        }
        if request.target.contains("/tags/list") {
            return Some(Reply::new(200).body(r#"{"name":"tool","tags":null}"#));
        }
        if request.target.contains("late") {
            return Some(Reply::new(200).body(manifest(b"c", b"l")).header("Content-Type", OCI_MANIFEST));
        }
        is_blob(request).then(|| part(request, &whole))
    });
    *host.lock().unwrap() = server.host();
    let given = ClientOptions { credentials: Some(Credentials::password("u", "p")), ..options() };
    let repository = repository(given, &format!("{}/tool", server.host()));
    assert!(repository.tags().unwrap().is_empty());
    for _ in 0..3 {
        let mut read = Vec::new();
        repository.blob(&Digest::of(&blob), Some(1000)).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, blob);
    }
    assert_eq!(tokens.load(Ordering::SeqCst), 1);
    repository.manifest(&Which::Tag("late".into())).unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 2);
}

#[test]
fn a_refresh_token_is_exchanged_by_post() {
    let host = std::sync::Arc::new(Mutex::new(String::new()));
    let realm_host = host.clone();
    let server = FaultServer::start(move |request| {
        if request.target == "/token" {
            assert_eq!(request.method, "POST");
            let body = String::from_utf8(request.body(usize::MAX)).unwrap();
            assert!(
                body.starts_with("grant_type=refresh_token&") && body.ends_with("&refresh_token=r%2F1"),
                "{body}"
            );
            return Some(Reply::new(200).body(r#"{"access_token":"a"}"#));
        }
        if request.header("authorization") != Some("Bearer a") {
            let realm = format!("Bearer realm=\"http://{}/token\"", realm_host.lock().unwrap());
            return Some(Reply::new(401).header("WWW-Authenticate", realm));
        }
        request.target.contains("/tags/list").then(|| Reply::new(200).body(r#"{"tags":["x"]}"#))
    });
    *host.lock().unwrap() = server.host();
    let given = ClientOptions { credentials: Some(Credentials::IdentityToken("r/1".into())), ..options() };
    assert_eq!(repository(given, &format!("{}/tool", server.host())).tags().unwrap(), ["x"]);
}

#[test]
fn refusals_name_the_registry_the_repository_and_the_remedy() {
    let server = FaultServer::start(|_| {
        Some(
            Reply::new(401)
                .header("WWW-Authenticate", "Basic realm=x")
                .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#),
        )
    });
    let host = server.host();
    let error = repository(options(), &format!("{host}/a/b")).manifest(&Which::Tag("c".into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("manifest c of {host}/a/b: access denied by {host}: authentication required")
    );
    assert!(error.hint().unwrap().ends_with(&format!("layerfs login {host}")));
}

fn manifest_of(reply: Reply) -> Result<Digest, RegistryError> {
    let server =
        FaultServer::start(move |request| request.target.contains("/manifests/").then(|| reply.clone()));
    let limited = ClientOptions { max_manifest: 10_000, ..options() };
    repository(limited, &format!("{}/tool", server.host()))
        .manifest(&Which::Tag("x".into()))
        .map(|manifest| manifest.digest)
}

#[test]
fn manifests_are_checked() {
    let document = manifest(b"config", b"layer");
    let reply = || Reply::new(200).header("Content-Type", OCI_MANIFEST).body(&document);
    let digest = Digest::of(&document);
    assert_eq!(manifest_of(reply()).unwrap(), digest);
    assert_eq!(manifest_of(reply().header("Docker-Content-Digest", digest)).unwrap(), digest);

    let kind = |reply: Reply| *manifest_of(reply).unwrap_err().kind;
    let other = Digest::of("other");
    assert!(matches!(kind(reply().header("Docker-Content-Digest", other)), ErrorKind::WrongDigest { .. }));
    assert!(matches!(kind(reply().body(vec![b' '; 10_001])), ErrorKind::TooLarge { limit: 10_000 }));
    assert!(matches!(kind(reply().cut(10)), ErrorKind::Connect { .. }));
    let old = r#"{"schemaVersion":1,"name":"tool","fsLayers":[]}"#;
    assert!(matches!(kind(Reply::new(200).body(old)), ErrorKind::Schema1));
    assert!(matches!(kind(Reply::new(200).body("<html>login here</html>")), ErrorKind::Manifest(_)));
}

/// A mirror that is wrong, empty or gone costs nothing but time.
#[test]
fn mirrors_that_fail_are_passed_over() {
    let document = manifest(b"config", b"layer");
    let digest = Digest::of(&document);
    let answer = move |request: &mut Request| {
        request
            .target
            .contains("/manifests/")
            .then(|| Reply::new(200).header("Content-Type", OCI_MANIFEST).body(&document))
    };
    let registry = FaultServer::start(answer.clone());
    let good = FaultServer::start(answer);
    let lying = FaultServer::start(|request| {
        request.target.contains("/manifests/").then(|| Reply::new(200).body(manifest(b"evil", b"evil")))
    });
    let empty = FaultServer::start(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("registries.conf");
    let host = registry.host();
    let with_mirrors = |mirrors: &[&str]| {
        let mut text = format!("[[registry]]\nlocation = \"{host}\"\n");
        for mirror in mirrors {
            text.push_str(&format!("[[registry.mirror]]\nlocation = \"{mirror}/hub\"\n"));
        }
        std::fs::write(&conf, text).unwrap();
        let environment = Environment { registries_conf: vec![conf.clone()], ..Environment::default() };
        repository(ClientOptions { environment, ..options() }, &format!("{host}/tool"))
    };
    let which = Which::Digest(digest);
    with_mirrors(&[&lying.host(), &empty.host(), "127.0.0.1:1", &good.host()]).manifest(&which).unwrap();
    assert_eq!(good.requests(), [format!("GET /v2/hub/tool/manifests/{digest}")]);
    assert!(registry.requests().is_empty());
    with_mirrors(&[&lying.host(), &empty.host()]).manifest(&which).unwrap();
    assert_eq!(registry.requests().len(), 1);
}

/// A registry's side of uploads, as far as these tests need it.
#[derive(Default)]
struct Uploads {
    stored: Vec<u8>,
    finished: bool,
}

/// Answers uploads; `fault` may step in before a request is handled.
fn upload_server(
    fault: impl Fn(&mut Request, &mut Uploads) -> Option<Reply> + Send + Sync + 'static,
) -> (FaultServer, std::sync::Arc<Mutex<Uploads>>) {
    let state = std::sync::Arc::new(Mutex::new(Uploads::default()));
    let shared = state.clone();
    let server = FaultServer::start(move |request| {
        let mut state = shared.lock().unwrap();
        if let Some(reply) = fault(request, &mut state) {
            return Some(reply);
        }
        let have = |state: &Uploads| format!("0-{}", state.stored.len().max(1) - 1);
        let location = "/v2/tool/blobs/uploads/session?state=1";
        match (request.method.as_str(), request.target.contains("/uploads/session")) {
            ("POST", _) => {
                state.stored.clear();
                Some(Reply::new(202).header("Location", location))
            }
            ("GET", true) => Some(Reply::new(204).header("Location", location).header("Range", have(&state))),
            ("PATCH", true) => {
                let range = request.header("content-range").unwrap_or("0-").to_owned();
                let start: usize = range.split('-').next().unwrap().parse().unwrap();
                let body = request.body(usize::MAX);
                if start != state.stored.len() {
                    return Some(Reply::new(416).header("Location", location).header("Range", have(&state)));
                }
                state.stored.extend(body);
                Some(Reply::new(202).header("Location", location).header("Range", have(&state)))
            }
            ("PUT", true) => {
                let body = request.body(usize::MAX);
                if body.len() < request.content_length() {
                    return Some(Reply::hang_up());
                }
                state.stored.extend(body);
                assert!(request.target.contains("&digest=sha256%3A"), "{}", request.target);
                state.finished = true;
                Some(Reply::new(201).header("Docker-Content-Digest", Digest::of(&state.stored)))
            }
            _ => None,
        }
    });
    (server, state)
}

fn upload(server: &FaultServer, chunk_size: Option<u64>, blob: &[u8]) -> Result<Uploaded, RegistryError> {
    let repository =
        repository(ClientOptions { chunk_size, ..options() }, &format!("{}/tool", server.host()));
    let mut last = 0;
    let result =
        repository.push_blob(&Digest::of(blob), blob.len() as u64, blob, &[], &mut |sent| last = sent);
    if result.is_ok() {
        assert_eq!(last, blob.len() as u64, "progress did not reach the end");
    }
    result
}

#[test]
fn uploads_are_whole_or_in_pieces() {
    let blob = content(100_000, 20);
    let (server, state) = upload_server(|_, _| None);
    assert_eq!(upload(&server, None, &blob).unwrap(), Uploaded::Sent);
    assert!(state.lock().unwrap().stored == blob);
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "{requests:?}");

    let (server, state) = upload_server(|_, _| None);
    upload(&server, Some(30_000), &blob).unwrap();
    assert!(state.lock().unwrap().stored == blob && state.lock().unwrap().finished);
    let patches = server.requests().iter().filter(|request| request.starts_with("PATCH")).count();
    assert_eq!(patches, 4);
}

/// The connection is cut in the middle of a piece, of which the registry keeps what came.
#[test]
fn an_upload_goes_on_where_it_was_cut() {
    let blob = content(1_000_000, 21);
    for chunk_size in [None, Some(300_000)] {
        let count = AtomicU32::new(0);
        let (server, state) = upload_server(move |request, state| {
            let is_data = matches!(request.method.as_str(), "PATCH" | "PUT");
            (is_data && count.fetch_add(1, Ordering::SeqCst) == 0).then(|| {
                state.stored.extend(request.body(123_456));
                Reply::hang_up()
            })
        });
        upload(&server, chunk_size, &blob).unwrap();
        assert!(state.lock().unwrap().stored == blob, "{chunk_size:?}");
        assert_eq!(server.requests().iter().filter(|request| request.starts_with("POST")).count(), 1);
    }
}

/// The registry is at another byte than this side thinks, and says so with 416.
#[test]
fn a_piece_out_of_place_is_sent_again_from_the_right_place() {
    let blob = content(100_000, 22);
    let count = AtomicU32::new(0);
    let (server, state) = upload_server(move |request, state| {
        if request.method == "PATCH" && count.fetch_add(1, Ordering::SeqCst) == 1 {
            state.stored.truncate(10_000);
        }
        None
    });
    upload(&server, Some(30_000), &blob).unwrap();
    assert!(state.lock().unwrap().stored == blob);
}

#[test]
fn an_upload_that_the_registry_forgot_begins_anew() {
    let blob = content(100_000, 23);
    let count = AtomicU32::new(0);
    let (server, state) =
        upload_server(move |request, _| match (request.method.as_str(), count.load(Ordering::SeqCst)) {
            ("PATCH", 0) => {
                count.fetch_add(1, Ordering::SeqCst);
                Some(Reply::new(503))
            }
            ("GET", 1) => Some(Reply::new(404)),
            _ => None,
        });
    upload(&server, Some(30_000), &blob).unwrap();
    assert!(state.lock().unwrap().stored == blob);
    assert_eq!(server.requests().iter().filter(|request| request.starts_with("POST")).count(), 2);
}

#[test]
fn uploads_that_cannot_work_are_told() {
    let blob = content(1000, 24);
    let (server, _) = upload_server(|request, _| {
        (request.method == "PUT")
            .then(|| Reply::new(201).header("Docker-Content-Digest", Digest::of("other")))
    });
    let error = upload(&server, None, &blob).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::WrongDigest { .. }), "{error}");

    let (server, _) = upload_server(|request, _| {
        (request.method == "POST")
            .then(|| Reply::new(403).body(r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#))
    });
    let error = upload(&server, None, &blob).unwrap_err();
    assert!(error.is_denied() && error.to_string().contains("read only"), "{error}");

    // The source is shorter than it was said to be.
    let (server, state) = upload_server(|_, _| None);
    let repository = repository(
        ClientOptions { retry: RetryPolicy::never(), ..options() },
        &format!("{}/tool", server.host()),
    );
    let error = repository.push_blob(&Digest::of(&blob), 1001, &blob[..], &[], &mut |_| {}).unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Source(_)), "{error}");
    assert!(!state.lock().unwrap().finished);
}

#[test]
fn nobody_there_is_told_at_once() {
    let error = repository(options(), "127.0.0.1:1/tool").tags().unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Connect { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

/// A registry that is no loopback is never spoken to without TLS unless it is said to be insecure.
#[test]
fn plain_http_is_for_loopback_and_by_option() {
    let server = FaultServer::start(|request| {
        request.target.contains("/tags/list").then(|| Reply::new(200).body(r#"{"tags":["x"]}"#))
    });
    let host = server.host().replace("127.0.0.1", "0.0.0.0");
    let name = format!("{host}/tool");
    let error =
        repository(ClientOptions { retry: RetryPolicy::never(), ..options() }, &name).tags().unwrap_err();
    assert!(matches!(*error.kind, ErrorKind::Connect { .. } | ErrorKind::NoTls { .. }), "{error}");
    assert!(server.requests().is_empty());
    let insecure = ClientOptions { insecure: vec![host], ..options() };
    assert_eq!(repository(insecure, &name).tags().unwrap(), ["x"]);
}

#[test]
fn pages_are_followed_and_not_to_other_hosts() {
    let server = FaultServer::start(|request| match request.target.as_str() {
        "/v2/_catalog?n=1000" => Some(
            Reply::new(200)
                .header("Link", "</v2/_catalog?last=b&n=2>; rel=\"next\"")
                .body(r#"{"repositories":["a","b"]}"#),
        ),
        "/v2/_catalog?last=b&n=2" => Some(Reply::new(200).body(r#"{"repositories":["c"]}"#)),
        "/v2/tool/tags/list?n=1000" => Some(
            Reply::new(200)
                .header("Link", "<http://other.invalid/x>; rel=\"next\"")
                .body(r#"{"tags":["a","../b"]}"#),
        ),
        _ => None,
    });
    let client = Client::new(options()).unwrap();
    let mut names = Vec::new();
    client
        .catalog(&server.host(), |name| {
            names.push(name);
            true
        })
        .unwrap();
    assert_eq!(names, ["a", "b", "c"]);
    let error = repository(options(), &format!("{}/tool", server.host())).tags().unwrap_err();
    assert!(error.to_string().contains("other.invalid"), "{error}");
}

/// A layer whose tar has one file, of `len` bytes.
fn layer(name: &str, len: usize) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    writer.file(name, &content(len, len as u32)).unwrap();
    writer.finish().unwrap()
}

/// Answers for the image `tool:1` of these layers, except where `fault` does.
fn image_server(
    layers: Vec<Vec<u8>>,
    fault: impl Fn(&Request, &[Vec<u8>]) -> Option<Reply> + Send + Sync + 'static,
) -> FaultServer {
    let digests: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |media_type: &str, bytes: &[u8]| serde_json::json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, &config),
        "layers": layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect::<Vec<_>>(),
    });
    FaultServer::start(move |request| {
        if let Some(reply) = fault(request, &layers) {
            return Some(reply);
        }
        if request.target.ends_with("/manifests/1") {
            return Some(Reply::new(200).header("Content-Type", OCI_MANIFEST).body(manifest.to_string()));
        }
        let all = layers.iter().chain([&config]);
        let blob = all.into_iter().find(|blob| request.target.ends_with(&Digest::of(blob).to_string()))?;
        Some(part(request, blob))
    })
}

fn pull_into(store: &Store, server: &FaultServer) -> Result<Pulled, Error> {
    let reference = Reference::parse(&format!("{}/tool:1", server.host())).unwrap();
    let session = store.session().unwrap();
    let client = Client::new(options()).unwrap();
    pull(store, &session, &client, &reference, &Platform::host(), &Silent)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("images"), std::sync::Arc::new(WithoutIndex)).unwrap();
    (dir, store)
}

/// Between the registry and the store are a decoder and an unpacker: what went wrong is told as the registry's fault, with
/// host and hint, and not as theirs.
#[test]
fn a_pull_that_fails_is_told_in_the_registrys_words() {
    let kind_of = |fault: fn(&Request, &[Vec<u8>]) -> Option<Reply>| {
        let server = image_server(vec![layer("a", 10_000)], fault);
        let (_dir, store) = store();
        let error = pull_into(&store, &server).unwrap_err();
        assert!(store.named().unwrap().is_empty());
        let Error::Registry(error) = error else { panic!("{error:?}") };
        assert!(error.to_string().contains(&server.host()), "{error}");
        assert!(error.hint().is_some(), "{error}");
        error.kind
    };
    let wrong = kind_of(|request, layers| {
        let mut bytes = layers[0].clone();
        bytes[5000] ^= 1;
        request.target.ends_with(&Digest::of(&layers[0]).to_string()).then(|| Reply::new(200).body(&bytes))
    });
    assert!(matches!(*wrong, ErrorKind::WrongDigest { .. }), "{wrong}");
    let short = kind_of(|request, layers| {
        let is_layer = request.target.ends_with(&Digest::of(&layers[0]).to_string());
        is_layer.then(|| Reply::new(200).body(&layers[0][..5000]))
    });
    assert!(matches!(*short, ErrorKind::WrongLength { .. }), "{short}");
    let cut = kind_of(|request, layers| {
        let is_layer = request.target.ends_with(&Digest::of(&layers[0]).to_string());
        is_layer.then(|| match request.range_start() {
            None => Reply::new(200).body(&layers[0]).cut(100),
            Some(_) => Reply::hang_up(),
        })
    });
    assert!(matches!(*cut, ErrorKind::Connect { .. }), "{cut}");
}

/// What was finished before a pull failed is not asked for again.
#[test]
fn the_next_pull_goes_on_where_one_failed() {
    let layers: Vec<Vec<u8>> = (0..4).map(|at| layer(&format!("f{at}"), 20_000 + at)).collect();
    let broken = std::sync::Arc::new(AtomicU32::new(1));
    let is_broken = broken.clone();
    let server = image_server(layers.clone(), move |request, layers| {
        let is_last = request.target.ends_with(&Digest::of(layers.last().unwrap()).to_string());
        (is_last && is_broken.load(Ordering::SeqCst) == 1).then(|| Reply::new(404))
    });
    let (_dir, store) = store();
    pull_into(&store, &server).unwrap_err();
    assert!(store.named().unwrap().is_empty());
    let before = server.requests().len();
    broken.store(0, Ordering::SeqCst);
    let pulled = pull_into(&store, &server).unwrap();
    assert!(!pulled.up_to_date);
    let again = server.requests().split_off(before);
    // Up to three layers were on their way when the last one failed.
    let first = Digest::of(&layers[0]).to_string();
    assert!(!again.iter().any(|request| request.ends_with(&first)), "{again:?}");
    for layer in &layers {
        assert!(store.layer_tree(&DiffId(Digest::of(layer))).is_dir());
    }
    assert!(store.check().unwrap().problems.is_empty());
    assert!(pull_into(&store, &server).unwrap().up_to_date);
}
