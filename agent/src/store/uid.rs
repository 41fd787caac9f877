//! UIDs: the same for the same pod after any restart, another for each of its successors.

use uuid::Uuid;

use super::object::Key;

/// Podling's namespace for version 5 UUIDs, made once at random.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f0b_3f2a_9d1e_4c57_8a64_2be1_7c05_d3f9);

/// The UID of the `incarnation`-th object of this key on this node, from 0.
///
/// The first one does not depend on anything stored: a node that lost its store finds its pods again.
pub(super) fn uid(node: &str, key: &Key, incarnation: u64) -> String {
    let name = format!(
        "{node}\n{}\n{}\n{}\n{incarnation}",
        key.kind, key.namespace, key.name
    );
    Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_depends_on_every_part_and_on_nothing_else() {
        let key = Key::pod("default", "web");
        let first = uid("node", &key, 0);
        assert_eq!(first, uid("node", &key, 0));
        assert_eq!(first.len(), 36);
        assert_ne!(first, uid("other", &key, 0));
        assert_ne!(first, uid("node", &key, 1));
        assert_ne!(first, uid("node", &Key::pod("default", "web2"), 0));
        assert_ne!(first, uid("node", &Key::pod("other", "web"), 0));
    }
}
