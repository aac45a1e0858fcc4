//! Which names of repositories and commits become names of folders here. They come from strangers: what these functions
//! let through cannot lead anywhere else. The chain's own, wider notion of a model id is [`model_id`](super::model_id)'s.

/// The longest namespace or name, in characters.
const MAX_CHARS: usize = 96;
/// Hexadecimal digits of a commit.
pub(super) const COMMIT_DIGITS: usize = 40;

/// Splits `namespace/name`. The error is a sentence.
pub fn repository(repo_id: &str) -> Result<(&str, &str), String> {
    repo_id.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name)).ok_or_else(|| {
        format!(
            "{repo_id:?} is no repository; write it as namespace/name, each of at most {MAX_CHARS} letters, digits, `.`, \
             `_` and `-`, without a dot at its start and without two in a row."
        )
    })
}

/// Whether a text names a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_CHARS).contains(&text.len())
        && text.bytes().all(is_allowed)
        && !text.starts_with('.')
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stay_in_their_folder_are_repositories() {
        let longest = format!("{0}/{0}", "n".repeat(96));
        for good in ["a/b", "Rao-Foundation/model_1.5", "-/_", longest.as_str()] {
            let (namespace, name) = repository(good).expect(good);
            assert_eq!(format!("{namespace}/{name}"), good);
        }
        let too_long = format!("a/{}", "n".repeat(97));
        for bad in [
            "", "a", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a/.git", ".a/b", "a/b..c", "a/b c", "a/b\0", "a\n/b",
            "ä/b", "a/b\\c", "a:b/c", &too_long,
        ] {
            assert!(repository(bad).is_err_and(|sentence| sentence.contains("is no repository")), "{bad:?}");
        }
    }

    #[test]
    fn commits_are_40_small_hexadecimal_digits() {
        assert!(is_commit(&"0123456789abcdef".repeat(3)[..40]));
        for bad in ["", "main", "../../../../../../../../../../../../../x", &"A".repeat(40), &"a".repeat(41)] {
            assert!(!is_commit(bad), "{bad}");
        }
        assert!(!is_commit(&"g".repeat(40)) && !is_commit(&"a".repeat(39)) && !is_commit(&"ä".repeat(20)));
    }
}
