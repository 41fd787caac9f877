//! The syntax of names (`k8s.io/apimachinery/pkg/util/validation`).

/// A DNS label of RFC 1123: at most 63 lower case letters, digits and `-`, which is not at its ends.
pub(super) fn dns_label(text: &str) -> Result<(), String> {
    if text.len() > 63 {
        return Err(format!("{} characters; at most 63 are allowed", text.len()));
    }
    if !is_label(text) {
        return Err(format!(
            "`{text}` is not a DNS label: lower case letters, digits and `-`, which is not at its ends"
        ));
    }
    Ok(())
}

/// DNS labels, separated by dots, at most 253 characters.
pub(crate) fn dns_subdomain(text: &str) -> Result<(), String> {
    if text.len() > 253 {
        return Err(format!(
            "{} characters; at most 253 are allowed",
            text.len()
        ));
    }
    if !text.split('.').all(is_label) {
        return Err(format!(
            "`{text}` is not a DNS name: lower case letters, digits, `-` and `.`, beginning and ending with a \
             letter or digit"
        ));
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|c| plain(*c)) && bytes.last().is_some_and(|c| plain(*c));
    ends && bytes.iter().all(|c| plain(*c) || *c == b'-')
}

/// The name of a port: at most 15 lower case letters, digits and `-`, with a letter, without `--`.
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let letter = text.bytes().any(|c| c.is_ascii_lowercase());
    if text.len() > 15 || !is_label(text) || !letter || text.contains("--") {
        return Err(format!(
            "`{text}` is not a port name: at most 15 lower case letters, digits and `-`, with at least one letter"
        ));
    }
    Ok(())
}

/// The key of a label or annotation: a name of at most 63 characters, with an optional DNS name and `/` before.
pub(crate) fn qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    if let Some(prefix) = prefix {
        dns_subdomain(prefix)?;
    }
    if name.is_empty() || name.len() > 63 || !is_name(name) {
        return Err(format!(
            "`{text}` is not a key: `name` or `domain/name`, the name of at most 63 letters, digits, `-`, `_` and \
             `.`, beginning and ending with a letter or digit"
        ));
    }
    Ok(())
}

/// The value of a label.
pub(crate) fn label_value(text: &str) -> Result<(), String> {
    if text.is_empty() || (text.len() <= 63 && is_name(text)) {
        return Ok(());
    }
    Err(format!(
        "`{text}` is not a label value: at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a \
         letter or digit"
    ))
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let plain = |c: &u8| c.is_ascii_alphanumeric();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes
            .iter()
            .all(|c| plain(c) || matches!(c, b'-' | b'_' | b'.'))
}

/// The key of a ConfigMap or Secret, which becomes a file name.
pub(super) fn data_key(text: &str) -> Result<(), String> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) {
        return Err(format!(
            "`{text}` is not a key: at most 253 letters, digits, `-`, `_` and `.`"
        ));
    }
    // As in Kubernetes: such a file would hide, or be, a directory of the volume itself.
    if text == "." || text.starts_with("..") {
        return Err(format!("`{text}` is not a key: it may not begin with `..`"));
    }
    Ok(())
}

/// The name of an environment variable: what Kubernetes takes since 1.34, printable ASCII without `=`.
pub(super) fn env_name(text: &str) -> Result<(), String> {
    let allowed = |c: u8| (b' '..=b'~').contains(&c) && c != b'=';
    if text.is_empty() || !text.bytes().all(allowed) {
        return Err(format!(
            "`{text}` is not the name of a variable: printable ASCII characters without `=`"
        ));
    }
    Ok(())
}

/// A path inside a volume: relative, without `..`.
pub(super) fn inner_path(text: &str) -> Result<(), String> {
    if text.starts_with('/') {
        return Err(format!(
            "`{text}` is absolute; it must be relative to the volume"
        ));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(format!("`{text}` leaves the volume by `..`"));
    }
    if text.contains('\0') {
        return Err("a path may not contain a NUL".to_owned());
    }
    Ok(())
}
