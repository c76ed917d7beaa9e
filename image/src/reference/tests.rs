use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Given, registry, repository, tag, familiar form. From docker's own answers.
const GOOD: &[(&str, &str, &str, &str, &str)] = &[
    ("debian", "docker.io", "library/debian", "latest", "debian:latest"),
    ("debian:12", "docker.io", "library/debian", "12", "debian:12"),
    ("library/debian", "docker.io", "library/debian", "latest", "debian:latest"),
    ("docker.io/debian", "docker.io", "library/debian", "latest", "debian:latest"),
    ("index.docker.io/debian", "docker.io", "library/debian", "latest", "debian:latest"),
    ("docker.io/library/debian:x", "docker.io", "library/debian", "x", "debian:x"),
    ("library/a/b", "docker.io", "library/a/b", "latest", "library/a/b:latest"),
    ("me/tool", "docker.io", "me/tool", "latest", "me/tool:latest"),
    ("localhost/tool", "localhost", "tool", "latest", "localhost/tool:latest"),
    ("localhost:5000/tool:v1", "localhost:5000", "tool", "v1", "localhost:5000/tool:v1"),
    ("localhost:5000", "docker.io", "library/localhost", "5000", "localhost:5000"),
    ("quay.io/a/b/c:V_1.x-y", "quay.io", "a/b/c", "V_1.x-y", "quay.io/a/b/c:V_1.x-y"),
    ("127.0.0.1:80/a", "127.0.0.1:80", "a", "latest", "127.0.0.1:80/a:latest"),
    ("[::1]:5000/a", "[::1]:5000", "a", "latest", "[::1]:5000/a:latest"),
    ("[fe80::1]/a", "[fe80::1]", "a", "latest", "[fe80::1]/a:latest"),
    ("HOST/a", "HOST", "a", "latest", "HOST/a:latest"),
    ("Example.com/a", "Example.com", "a", "latest", "Example.com/a:latest"),
    ("a__b/c-----d/e.f_g", "docker.io", "a__b/c-----d/e.f_g", "latest", "a__b/c-----d/e.f_g:latest"),
    ("a.b/c", "a.b", "c", "latest", "a.b/c:latest"),
    ("a:b", "docker.io", "library/a", "b", "a:b"),
    ("docker.io/localhost/a", "docker.io", "localhost/a", "latest", "docker.io/localhost/a:latest"),
    ("docker.io/a.b/c", "docker.io", "a.b/c", "latest", "docker.io/a.b/c:latest"),
    ("xn--7o8h.com/a", "xn--7o8h.com", "a", "latest", "xn--7o8h.com/a:latest"),
];

#[test]
fn names_are_completed_as_docker_does() {
    for &(text, registry, repository, tag, familiar) in GOOD {
        let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.registry(), registry, "{text}");
        assert_eq!(reference.repository(), repository, "{text}");
        assert_eq!(reference.tag(), Some(tag), "{text}");
        assert_eq!(reference.digest(), None, "{text}");
        assert_eq!(reference.familiar(), familiar, "{text}");
        assert_eq!(reference.to_string(), format!("{registry}/{repository}:{tag}"), "{text}");
    }
}

#[test]
fn a_digest_needs_no_tag_and_may_have_one() {
    let digest = Digest::parse(DIGEST).unwrap();
    let alone = Reference::parse(&format!("debian@{DIGEST}")).unwrap();
    assert_eq!((alone.tag(), alone.digest()), (None, Some(&digest)));
    assert_eq!(alone.to_string(), format!("docker.io/library/debian@{DIGEST}"));
    let both = Reference::parse(&format!("localhost:5000/a:b@{DIGEST}")).unwrap();
    assert_eq!((both.tag(), both.digest()), (Some("b"), Some(&digest)));
    assert_eq!(both.familiar(), format!("localhost:5000/a:b@{DIGEST}"));
    assert_eq!(both.with_tag("c").unwrap().familiar(), "localhost:5000/a:c");
    assert_eq!(both.with_digest(digest).familiar(), format!("localhost:5000/a@{DIGEST}"));
    assert_eq!(both.without_tag().familiar(), "localhost:5000/a");
}

#[test]
fn without_a_tag_means_without() {
    assert_eq!(Reference::parse_without_tag("debian").unwrap().tag(), None);
    assert_eq!(Reference::parse_without_tag("debian:12").unwrap().tag(), Some("12"));
}

#[test]
fn what_is_no_name_is_refused() {
    let too_long = "a/".repeat(128) + "a";
    let long_tag = format!("a:{}", "t".repeat(129));
    let identifier_like = format!("a@{}", &DIGEST[7..]);
    let bad = [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ":a",
        "a:",
        "a::b",
        "a:b:c",
        "@",
        "a@",
        "a@b",
        "a b",
        "a\n",
        "a\0",
        "é",
        "-a",
        "a-",
        ".a",
        "a.",
        "a..b",
        "a___b",
        "_a",
        "a._b",
        "a/../b",
        "../a",
        "./a",
        "a/./b",
        "a:.b",
        "a:-b",
        "a:b/c",
        "a:b?c",
        "a?b",
        "a#b",
        "a%2fb",
        "a\\b",
        "http://a/b",
        "https://a.b/c",
        "a.b:/c",
        "a.b:x/c",
        "-a.b/c",
        "a-.b/c",
        "a..b.c/d",
        "[::1/a",
        "[]/a",
        "[::1]x/a",
        "[::g]:1/a",
        "user@host.x/a",
        &too_long,
        &long_tag,
        &identifier_like,
    ];
    for text in bad {
        let parsed = Reference::parse(text);
        assert!(parsed.is_err(), "{text:?} was taken as {parsed:?}");
    }
}

#[test]
fn refusals_have_dockers_words() {
    let words = |text: &str| Reference::parse(text).unwrap_err().to_string();
    assert_eq!(
        words("Debian"),
        "invalid reference format: repository name (library/Debian) must be lowercase"
    );
    assert_eq!(words("a/B:c"), "invalid reference format: repository name (a/B) must be lowercase");
    let id = &DIGEST[7..];
    assert_eq!(
        words(id),
        format!("invalid repository name ({id}), cannot specify 64-byte hexadecimal strings")
    );
    assert!(words(&"a".repeat(300)).starts_with("repository name must not be more than 255 characters"));
    assert!(words("a b").starts_with("invalid reference format"));
}

#[test]
fn lengths_are_counted_to_the_byte() {
    let longest = format!("a.b/{}", "c".repeat(MAX_REPOSITORY));
    assert!(Reference::parse(&longest).is_ok());
    assert!(Reference::parse(&format!("{longest}c")).is_err());
    let tag = "t".repeat(MAX_TAG);
    assert!(Reference::parse(&format!("a:{tag}")).is_ok());
    assert!(Reference::parse(&format!("a:{tag}t")).is_err());
}

proptest! {
    /// Whatever parses is safe as a path, and means the same when written out and read again.
    #[test]
    fn parsed_names_are_stable_and_safe(text in "[a-zA-Z0-9:/@._ -]{0,40}|\\PC{0,20}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
            for component in reference.repository().split('/') {
                prop_assert!(!component.is_empty() && component != "." && component != "..");
            }
            prop_assert!(reference.to_string().is_ascii());
        }
    }

    /// Everything that the grammar generates is taken.
    #[test]
    fn the_grammar_is_accepted(
        host in "([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\\.){1,3}[a-z]{2,3}(:[0-9]{1,5})?",
        path in "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+){0,2}(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+){0,2}){0,3}",
        tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
    ) {
        prop_assume!(path.len() <= MAX_REPOSITORY);
        let reference = Reference::parse(&format!("{host}/{path}:{tag}")).unwrap();
        prop_assert_eq!(reference.registry(), host);
        prop_assert_eq!(reference.repository(), path);
        prop_assert_eq!(reference.tag(), Some(tag.as_str()));
    }
}
