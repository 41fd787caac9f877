//! OCI archives made by the tests themselves, byte by byte, so that loading them tests more than a round trip.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An OCI archive with one layer: Debian's static busybox and a link for each of its applets.
pub fn busybox_archive(archive: &Path, reference: &str) {
    busybox_archive_with(archive, reference, &["sh"]);
}

/// The same with another command.
pub fn busybox_archive_with(archive: &Path, reference: &str, command: &[&str]) {
    let busybox = fs::read("/bin/busybox").expect("Debian's busybox-static");
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "tmp", "root", "data", "proc", "sys", "dev"] {
        append(
            &mut layer,
            dir,
            tar::EntryType::Directory,
            if dir == "tmp" { 0o1777 } else { 0o755 },
            &[],
            None,
        );
    }
    append(
        &mut layer,
        "bin/busybox",
        tar::EntryType::Regular,
        0o755,
        &busybox,
        None,
    );
    let applets = [
        "sh", "cat", "echo", "ls", "sleep", "id", "env", "hostname", "ps", "kill", "true", "false",
        "nc", "httpd", "wget", "touch", "rm", "mkdir", "stat", "mount", "dd", "head", "tail",
        "seq", "yes", "ip", "grep", "printf", "wc", "ln", "test", "date", "ping", "nslookup", "tr",
        "chmod", "df", "trap",
    ];
    for applet in applets {
        append(
            &mut layer,
            &format!("bin/{applet}"),
            tar::EntryType::Symlink,
            0o777,
            &[],
            Some("busybox"),
        );
    }
    append(
        &mut layer,
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/data:/bin/sh\n",
        None,
    );
    append(
        &mut layer,
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nweb:x:1000:\nextra:x:2000:web\n",
        None,
    );
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": command });
    write_archive(archive, reference, &[layer.into_inner().unwrap()], config);
}

/// An image for a processor that no test machine has.
pub fn foreign_archive(archive: &Path, reference: &str) {
    let mut layer = tar::Builder::new(Vec::new());
    let kind = tar::EntryType::Regular;
    append(&mut layer, "program", kind, 0o755, b"foreign", None);
    let layers = [layer.into_inner().unwrap()];
    write_archive_for("s390x", archive, reference, &layers, json!({}));
}

/// An OCI archive of uncompressed layers.
pub fn write_archive(archive: &Path, reference: &str, layers: &[Vec<u8>], config: Value) {
    write_archive_for("amd64", archive, reference, layers, config);
}

fn write_archive_for(
    architecture: &str,
    archive: &Path,
    reference: &str,
    layers: &[Vec<u8>],
    config: Value,
) {
    let diff_ids: Vec<String> = layers.iter().map(|l| digest(l)).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar", l)).collect::<Vec<_>>(),
    }))
    .unwrap();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "org.opencontainers.image.ref.name": reference, "io.containerd.image.name": reference });
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] })).unwrap();

    let mut out = tar::Builder::new(File::create(archive).unwrap());
    append(
        &mut out,
        "oci-layout",
        tar::EntryType::Regular,
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        None,
    );
    append(
        &mut out,
        "index.json",
        tar::EntryType::Regular,
        0o644,
        &index,
        None,
    );
    for blob in layers.iter().chain([&config, &manifest]) {
        let name = format!("blobs/sha256/{}", &digest(blob)["sha256:".len()..]);
        append(&mut out, &name, tar::EntryType::Regular, 0o644, blob, None);
    }
    out.into_inner().unwrap().flush().unwrap();
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

/// Adds one entry to a tar.
pub fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
    link: Option<&str>,
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    match link {
        Some(target) => {
            header.set_size(0);
            tar.append_link(&mut header, path, target).unwrap();
        }
        None => tar.append_data(&mut header, path, content).unwrap(),
    }
}
