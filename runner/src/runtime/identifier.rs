//! Names of containers: they are names of directories and cgroups too.

use super::RuntimeError;

/// As a directory allows.
const LENGTH_MAX: usize = 255;

/// Refuses what could not be a name, with runc's rules.
///
/// # Errors
/// What is wrong with it.
pub fn check(id: &str) -> Result<(), RuntimeError> {
    let refused = |problem| Err(RuntimeError::Id { id: id.to_owned(), problem });
    if id.is_empty() {
        return refused("is empty");
    }
    if id.len() > LENGTH_MAX {
        return refused("is longer than 255 bytes");
    }
    if id == "." || id == ".." {
        return refused("is the name of a directory");
    }
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte)) {
        return refused("may have letters, digits, and _ + - . only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a b", "ü", "a\0"] {
            assert!(check(id).is_err(), "{id:?}");
        }
        assert!(check("a-Z_0+9.x").is_ok());
        assert!(check(&"x".repeat(256)).is_err());
    }
}
