use super::*;
use proptest::prelude::*;

fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(99);
    header.set_cksum();
    header
}

fn push(archive: &mut Vec<u8>, header: &Header, content: &[u8]) {
    archive.extend(header.as_bytes());
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        all.extend(format!("{len} {key}=").bytes());
        all.extend(*value);
        all.push(b'\n');
    }
    all
}

fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut stream = TarStream::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = stream.next_entry()? {
        let mut content = Vec::new();
        stream.read_to_end(&mut content).map_err(TarError::Read)?;
        all.push((entry, content));
    }
    Ok(all)
}

#[test]
fn reads_names_attributes_and_content() {
    let mut archive = Vec::new();
    let long = "d/".repeat(150) + "f";
    let records = pax(&[
        ("path", long.as_bytes()),
        ("mtime", b"-1.5"),
        ("uid", b"4000000000"),
        ("SCHILY.xattr.security.capability", b"\x01\n=\x0a\x00z"),
    ]);
    push(
        &mut archive,
        &header("x", EntryType::XHeader, records.len() as u64),
        &records,
    );
    push(
        &mut archive,
        &header("short", EntryType::Regular, 5),
        b"hello",
    );
    let mut name = long.clone().into_bytes();
    name.push(0);
    push(
        &mut archive,
        &header("././@LongLink", EntryType::GNULongName, name.len() as u64),
        &name,
    );
    push(&mut archive, &header("short", EntryType::Directory, 5), b"");
    let mut old = header("old/", EntryType::Regular, 0);
    old.as_old_mut().linkflag = [0];
    old.set_cksum();
    push(&mut archive, &old, b"");
    archive.extend([0; 1024]);
    archive.extend(b"after the end");
    let all = read_all(&archive).unwrap();
    assert_eq!(all.len(), 3);
    let (file, content) = &all[0];
    assert_eq!(
        (file.path.as_slice(), content.as_slice()),
        (long.as_bytes(), &b"hello"[..])
    );
    assert_eq!((file.uid, file.gid, file.mode), (4_000_000_000, 8, 0o644));
    assert_eq!(file.mtime, (-2, 500_000_000));
    assert_eq!(
        file.xattrs[&b"security.capability"[..]],
        b"\x01\n=\x0a\x00z"
    );
    // The size of a directory says nothing about the stream.
    assert_eq!(
        (&all[1].0.kind, &all[1].0.path),
        (&Kind::Directory, &long.into_bytes())
    );
    assert_eq!(all[2].0.kind, Kind::Directory);
}

#[test]
fn reads_sparse_files_of_both_gnu_formats() {
    let mut archive = Vec::new();
    let mut old = header("old", EntryType::GNUSparse, 3);
    {
        let gnu = old.as_gnu_mut().unwrap();
        gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000003\0");
        gnu.realsize.copy_from_slice(b"00000020000\0");
    }
    old.set_cksum();
    push(&mut archive, &old, b"abc");
    let records = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"new"),
        ("GNU.sparse.realsize", b"8192"),
    ]);
    push(
        &mut archive,
        &header("x", EntryType::XHeader, records.len() as u64),
        &records,
    );
    let mut content = b"1\n4096\n3\n".to_vec();
    content.resize(512, 0);
    content.extend(b"xyz");
    push(
        &mut archive,
        &header(
            "GNUSparseFile.0/new",
            EntryType::Regular,
            content.len() as u64,
        ),
        &content,
    );
    let all = read_all(&archive).unwrap();
    for ((entry, content), expected) in all.iter().zip([("old", "abc"), ("new", "xyz")]) {
        assert_eq!(entry.path, expected.0.as_bytes());
        assert_eq!(content, expected.1.as_bytes());
        assert_eq!(entry.size, 8192);
        assert_eq!(entry.sparse, Some(vec![(4096, 3)]));
    }
}

/// One file with these PAX records before it.
fn with_records(records: &[(&str, &[u8])], content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let records = pax(records);
    let kind = EntryType::XHeader;
    push(
        &mut archive,
        &header("x", kind, records.len() as u64),
        &records,
    );
    let file = header("f", EntryType::Regular, content.len() as u64);
    push(&mut archive, &file, content);
    archive
}

#[test]
fn reads_sparse_files_of_the_early_pax_formats() {
    let version_0: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"8192"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"1"),
    ];
    let version_1: &[(&str, &[u8])] = &[
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.size", b"8192"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"0,2,4096,1"),
    ];
    for records in [version_0, version_1] {
        let all = read_all(&with_records(records, b"abc")).unwrap();
        let (entry, content) = &all[0];
        assert_eq!(entry.path, b"f");
        assert_eq!((entry.size, content.as_slice()), (8192, &b"abc"[..]));
        assert_eq!(entry.sparse, Some(vec![(0, 2), (4096, 1)]));
    }
    for (key, value) in [
        ("GNU.sparse.map", &b"0,2,4096"[..]),
        ("GNU.sparse.map", b"4096,1,0,2"),
        ("GNU.sparse.map", b"0,2,4096,9"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.size", b"10"),
        ("GNU.sparse.offset", b"1"),
        ("GNU.sparse.major", b"2"),
    ] {
        let mut bad = version_1.to_vec();
        bad.retain(|(k, _)| *k != key);
        bad.push((key, value));
        assert!(read_all(&with_records(&bad, b"abc")).is_err(), "{key}");
    }
}

#[test]
fn attributes_of_libarchive_are_decoded() {
    let archive = with_records(
        &[
            ("LIBARCHIVE.xattr.user.a%20b", b"AQID/w=="),
            ("LIBARCHIVE.xattr.user.bare", b"AQID/w"),
            ("SCHILY.xattr.user.both", b"plain"),
            ("LIBARCHIVE.xattr.user.both", b"AQID"),
        ],
        b"",
    );
    let xattrs = &read_all(&archive).unwrap()[0].0.xattrs;
    assert_eq!(xattrs[&b"user.a b"[..]], [1, 2, 3, 0xff]);
    assert_eq!(xattrs[&b"user.bare"[..]], [1, 2, 3, 0xff]);
    assert_eq!(xattrs[&b"user.both"[..]], b"plain");
    for (key, value) in [
        ("user.a", &b"A"[..]),
        ("user.a", b"*"),
        ("user.%2", b"AQID"),
    ] {
        let key = format!("LIBARCHIVE.xattr.{key}");
        assert!(read_all(&with_records(&[(&key, value)], b"")).is_err());
    }
}

#[test]
fn an_empty_pax_value_takes_back_what_was_said() {
    let archive = with_records(
        &[
            ("path", b"other"),
            ("path", b""),
            ("size", b""),
            ("mtime", b""),
            ("uid", b""),
        ],
        b"abc",
    );
    let (entry, content) = &read_all(&archive).unwrap()[0];
    assert_eq!(
        (entry.path.as_slice(), content.as_slice()),
        (&b"f"[..], &b"abc"[..])
    );
    assert_eq!((entry.uid, entry.mtime), (7, (99, 0)));
}

#[test]
fn the_size_in_pax_records_is_the_one_that_counts() {
    // The header says nothing, so that a reader that trusts it takes the content for the next header.
    let mut archive = Vec::new();
    let records = pax(&[("size", b"512")]);
    let size = records.len() as u64;
    push(
        &mut archive,
        &header("x", EntryType::XHeader, size),
        &records,
    );
    let hidden = *header("hidden", EntryType::Regular, 0).as_bytes();
    push(&mut archive, &header("f", EntryType::Regular, 0), &hidden);
    push(&mut archive, &header("last", EntryType::Regular, 0), b"");
    let all = read_all(&archive).unwrap();
    let names: Vec<_> = all.iter().map(|(entry, _)| entry.path.clone()).collect();
    assert_eq!(names, [&b"f"[..], b"last"]);
    assert_eq!(all[0].1, hidden);
}

#[test]
fn of_two_names_gnus_wins_and_of_two_sets_of_records_the_last() {
    let mut archive = Vec::new();
    push(
        &mut archive,
        &header("l", EntryType::GNULongName, 4),
        b"gnu\0",
    );
    for records in [
        &[("path", &b"pax"[..]), ("uid", b"1")][..],
        &[("path", b"pax")],
    ] {
        let records = pax(records);
        let size = records.len() as u64;
        push(
            &mut archive,
            &header("x", EntryType::XHeader, size),
            &records,
        );
    }
    push(&mut archive, &header("f", EntryType::Regular, 0), b"");
    let entry = &read_all(&archive).unwrap()[0].0;
    assert_eq!((entry.path.as_slice(), entry.uid), (&b"gnu"[..], 7));
}

#[test]
fn a_file_whose_name_ends_in_a_slash_has_its_content() {
    let mut archive = Vec::new();
    push(&mut archive, &header("f/", EntryType::Regular, 3), b"abc");
    let (entry, content) = &read_all(&archive).unwrap()[0];
    assert_eq!(
        (&entry.kind, content.as_slice()),
        (&Kind::File, &b"abc"[..])
    );
}

#[test]
fn global_records_that_say_something_of_files_are_refused() {
    for (key, refused) in [
        ("comment", false),
        ("atime", false),
        ("path", true),
        ("SCHILY.xattr.user.a", true),
    ] {
        let mut archive = Vec::new();
        let records = pax(&[(key, b"1")]);
        let size = records.len() as u64;
        push(
            &mut archive,
            &header("g", EntryType::XGlobalHeader, size),
            &records,
        );
        push(&mut archive, &header("f", EntryType::Regular, 0), b"");
        assert_eq!(read_all(&archive).is_err(), refused, "{key}");
    }
}

#[test]
fn a_long_name_of_a_gigabyte_is_refused_before_it_is_read() {
    let archive = header("x", EntryType::GNULongName, 1 << 30);
    let error = read_all(archive.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("exceeds 1 MiB"), "{error}");
}

#[test]
fn a_size_beyond_the_end_of_the_stream_is_an_error() {
    let mut archive = Vec::new();
    push(
        &mut archive,
        &header("f", EntryType::Regular, 4096),
        b"short",
    );
    assert!(read_all(&archive).is_err());
    let mut stream = TarStream::new(archive.as_slice());
    assert!(stream.next_entry().unwrap().is_some());
    assert!(matches!(stream.next_entry(), Err(TarError::Truncated(_))));
}

#[test]
fn the_last_filling_and_the_end_marks_may_be_missing() {
    let mut archive = header("f", EntryType::Regular, 5).as_bytes().to_vec();
    archive.extend(b"hello");
    assert_eq!(read_all(&archive).unwrap()[0].1, b"hello");
    archive.push(0);
    assert!(matches!(read_all(&archive), Err(TarError::Truncated(_))));
}

#[test]
fn lies_in_a_sparse_map_are_refused() {
    for (offset, len, real) in [
        (b"00000010000\0", b"00000000004\0", b"00000020000\0"),
        (b"00000020000\0", b"00000000003\0", b"00000020000\0"),
    ] {
        let mut old = header("old", EntryType::GNUSparse, 3);
        let gnu = old.as_gnu_mut().unwrap();
        gnu.sparse[0].offset.copy_from_slice(offset);
        gnu.sparse[0].numbytes.copy_from_slice(len);
        gnu.realsize.copy_from_slice(real);
        old.set_cksum();
        let mut archive = Vec::new();
        push(&mut archive, &old, b"abc");
        assert!(matches!(read_all(&archive), Err(TarError::Corrupt { .. })));
    }
}

#[test]
fn a_wrong_checksum_is_refused() {
    let good = header("f", EntryType::Regular, 0).as_bytes().to_vec();
    let mut bad = good.clone();
    bad[0] = b'g';
    assert!(matches!(read_all(&bad), Err(TarError::NotAnArchive)));
    let archive = [good, bad].concat();
    assert!(matches!(read_all(&archive), Err(TarError::Corrupt { .. })));
    let text = b"root:x:0:0:root:/root:/bin/bash\n".repeat(100);
    assert!(matches!(read_all(&text), Err(TarError::NotAnArchive)));
}

proptest! {
    #[test]
    fn numbers_in_base_256_and_octal_read_back(value in 0_u64..(1 << 62)) {
        let mut header = Header::new_gnu();
        header.set_size(value);
        prop_assert_eq!(number(&header.as_old().size, b"").unwrap(), value as i64);
    }

    /// Any damage to an archive gives entries or an error, and no endless loop or panic.
    #[test]
    fn damaged_archives_end_in_peace(
        damage in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..8),
        cut in 0_usize..4096,
        fix in any::<bool>(),
    ) {
        let mut archive = Vec::new();
        let records = pax(&[("path", b"long/name"), ("SCHILY.xattr.user.a", b"b")]);
        push(&mut archive, &header("x", EntryType::XHeader, records.len() as u64), &records);
        push(&mut archive, &header("f", EntryType::Regular, 600), &[b'f'; 600]);
        push(&mut archive, &header("s", EntryType::GNUSparse, 0), b"");
        archive.extend([0; 1024]);
        for (at, byte) in damage {
            let at = at % archive.len();
            archive[at] = byte;
        }
        archive.truncate(cut.max(512));
        if fix {
            let first = Header::from_byte_slice(&archive[..512]).clone();
            let mut first = first;
            first.set_cksum();
            archive[..512].copy_from_slice(first.as_bytes());
        }
        if let Ok(entries) = read_all(&archive) {
            prop_assert!(entries.len() <= 8);
        }
    }
}
