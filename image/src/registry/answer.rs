//! What a registry's answers mean: statuses, error documents, challenges.

use serde::Deserialize;

use super::auth::challenge::{self, Challenge};
use super::auth::display_host;
use super::error::ErrorKind;
use super::retry::retry_after;
use super::transport::Answer;

/// Error documents beyond this are not read.
const MAX_ERROR: u64 = 64 << 10;
/// Of a text that is no error document, people see so many characters.
const MAX_WORDS: usize = 200;

/// Distribution specification, "error codes".
#[derive(Deserialize)]
struct ErrorDocument {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Of token servers and of Docker Hub.
#[derive(Deserialize)]
struct OtherDocument {
    details: Option<String>,
    error_description: Option<String>,
    message: Option<String>,
    error: Option<String>,
}

/// The words of an error body, on one line, without control characters.
pub(super) fn reason_of(body: &[u8]) -> String {
    if let Ok(document) = serde_json::from_slice::<ErrorDocument>(body) {
        let words = document.errors.into_iter().map(|error| {
            let code = error.code.to_lowercase().replace('_', " ");
            if error.message.is_empty() || error.message.eq_ignore_ascii_case(&code) {
                return code;
            }
            error.message
        });
        return printable(&words.collect::<Vec<_>>().join("; "));
    }
    if let Ok(document) = serde_json::from_slice::<OtherDocument>(body) {
        let words = document.details.or(document.error_description).or(document.message).or(document.error);
        return printable(&words.unwrap_or_default());
    }
    let text = String::from_utf8_lossy(body);
    // A page made for browsers says less than the status.
    if text.trim_start().starts_with('<') { String::new() } else { printable(text.trim()) }
}

/// What a server wrote may not reach a terminal as it is.
pub(super) fn printable(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut words: String = line.take(MAX_WORDS).collect();
    if text.chars().nth(MAX_WORDS).is_some() {
        words.push_str("...");
    }
    words.trim().to_owned()
}

/// All challenges of an answer.
pub(super) fn challenges(answer: &Answer) -> Vec<Challenge> {
    let headers = answer.headers.get_all("www-authenticate");
    headers.iter().filter_map(|header| header.to_str().ok()).flat_map(challenge::parse).collect()
}

/// The error that an answer without success stands for.
pub(super) fn error_of(answer: Answer, authenticated: bool) -> ErrorKind {
    let status = answer.status;
    let host = answer.url.authority().to_owned();
    let retry_after = answer.header("retry-after").and_then(retry_after);
    let reason = match answer.bytes(MAX_ERROR) {
        Ok(Some(body)) => reason_of(&body),
        // The status says enough.
        Ok(None) | Err(_) => String::new(),
    };
    match status {
        401 | 403 => ErrorKind::Denied { host: display_host(&host), authenticated, reason },
        404 => ErrorKind::NotFound(reason),
        429 => ErrorKind::TooManyRequests { host, retry_after },
        _ => ErrorKind::Status { host, status, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_become_words() {
        let table: [(&str, &str); 9] = [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#, "manifest unknown"),
            (r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"X_Y"}]}"#, "no; x y"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"error":"invalid_grant","error_description":"token is old"}"#, "token is old"),
            ("{\"message\":\"a\\u001b[31mb\\nc\"}", "a [31mb c"),
            ("<html><body>502</body></html>", ""),
            ("plain words\n", "plain words"),
            ("", ""),
            ("[]", "[]"),
        ];
        for (body, words) in table {
            assert_eq!(reason_of(body.as_bytes()), words, "{body}");
        }
        assert_eq!(reason_of("x".repeat(500).as_bytes()).len(), MAX_WORDS + 3);
    }
}
