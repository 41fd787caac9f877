//! Volumes, and the mounts that name them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, KeyToPath, PodSpec, Volume};

use super::super::quantity;
use super::{Faults, text};

const HOST_PATH_TYPES: [&str; 7] = [
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

pub(super) fn volumes(spec: &PodSpec, faults: &mut Faults) {
    let mut names = BTreeSet::new();
    for (at, each) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{at}]");
        if let Err(message) = text::dns_label(&each.name) {
            faults.add(format!("{path}.name"), message);
        }
        if !names.insert(each.name.as_str()) {
            let message = format!("another volume is named `{}`", each.name);
            faults.add(format!("{path}.name"), message);
        }
        volume(&path, each, faults);
    }
}

fn volume(path: &str, volume: &Volume, faults: &mut Faults) {
    // What other sources there are, the support table refuses.
    let sources = [
        volume.empty_dir.is_some(),
        volume.host_path.is_some(),
        volume.config_map.is_some(),
        volume.secret.is_some(),
    ];
    let others = serde_json::to_value(volume).ok();
    let others = others.and_then(|value| value.as_object().map(serde_json::Map::len));
    match sources.iter().filter(|is| **is).count() {
        0 if others <= Some(1) => faults.add_with(
            path,
            "the volume says nothing about where it comes from",
            "add emptyDir, hostPath, configMap or secret",
        ),
        0 | 1 => {}
        _ => faults.add(path, "a volume comes from one place only"),
    }
    if let Some(empty_dir) = &volume.empty_dir {
        let medium = format!("{path}.emptyDir.medium");
        faults.one_of(&medium, empty_dir.medium.as_deref(), &["Memory"]);
        if let Some(limit) = &empty_dir.size_limit {
            size(&format!("{path}.emptyDir.sizeLimit"), &limit.0, faults);
        }
    }
    if let Some(host_path) = &volume.host_path {
        let type_ = format!("{path}.hostPath.type");
        faults.one_of(&type_, host_path.type_.as_deref(), &HOST_PATH_TYPES);
        let field = format!("{path}.hostPath.path");
        if !host_path.path.starts_with('/') {
            faults.add(&field, format!("`{}` is not absolute", host_path.path));
        }
        if host_path.path.split('/').any(|part| part == "..") {
            faults.add(&field, "the path may not contain `..`");
        }
    }
    if let Some(map) = &volume.config_map {
        let path = format!("{path}.configMap");
        reference(&path, "name", &map.name, faults);
        items(&path, map.items.as_deref(), map.default_mode, faults);
    }
    if let Some(secret) = &volume.secret {
        let path = format!("{path}.secret");
        reference(
            &path,
            "secretName",
            secret.secret_name.as_deref().unwrap_or_default(),
            faults,
        );
        items(&path, secret.items.as_deref(), secret.default_mode, faults);
    }
}

fn reference(path: &str, field: &str, name: &str, faults: &mut Faults) {
    if name.is_empty() {
        faults.add(format!("{path}.{field}"), "required");
    } else if let Err(message) = text::dns_subdomain(name) {
        faults.add(format!("{path}.{field}"), message);
    }
}

fn items(path: &str, items: Option<&[KeyToPath]>, default_mode: Option<i32>, faults: &mut Faults) {
    mode(&format!("{path}.defaultMode"), default_mode, faults);
    for (at, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{at}]");
        if item.key.is_empty() {
            faults.add(format!("{path}.key"), "required");
        }
        mode(&format!("{path}.mode"), item.mode, faults);
        if item.path.is_empty() {
            faults.add(format!("{path}.path"), "required");
        } else if let Err(message) = text::inner_path(&item.path) {
            faults.add(format!("{path}.path"), message);
        } else if item.path.starts_with("..") {
            faults.add(format!("{path}.path"), "may not begin with `..`");
        }
    }
}

fn mode(path: &str, mode: Option<i32>, faults: &mut Faults) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        faults.add_with(
            path,
            format!("{mode} (octal {mode:o}) is not a file mode"),
            "write it with a leading zero, such as 0644",
        );
    }
}

/// An amount of storage or memory that must be positive.
fn size(path: &str, amount: &str, faults: &mut Faults) {
    match quantity::nanos(amount) {
        Ok(nanos) if nanos < 0 => faults.add(path, format!("`{amount}` is negative")),
        Ok(_) => {}
        Err(error) => super::container::bad_quantity(path, &error, faults),
    }
}

/// The mounts of one container.
pub(super) fn mounts(path: &str, container: &Container, spec: &PodSpec, faults: &mut Faults) {
    let known: Vec<&str> = spec
        .volumes
        .iter()
        .flatten()
        .map(|v| v.name.as_str())
        .collect();
    let mut targets = BTreeSet::new();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        if !known.contains(&mount.name.as_str()) {
            let remedy = match super::super::decode::nearest(&mount.name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "add it to spec.volumes".to_owned(),
            };
            let message = format!("the pod has no volume `{}`", mount.name);
            faults.add_with(format!("{path}.name"), message, remedy);
        }
        let target = format!("{path}.mountPath");
        if mount.mount_path.is_empty() {
            faults.add(&target, "required");
        } else if mount.mount_path.contains(':') || mount.mount_path.contains('\0') {
            faults.add(&target, "a mount path may not contain `:`");
        } else if mount.mount_path.split('/').any(|part| part == "..") {
            faults.add(&target, "a mount path may not contain `..`");
        } else if !targets.insert(mount.mount_path.trim_end_matches('/')) {
            let message = format!("another volume is mounted at `{}`", mount.mount_path);
            faults.add(&target, message);
        }
        if let Some(sub_path) = &mount.sub_path
            && let Err(message) = text::inner_path(sub_path)
        {
            faults.add(format!("{path}.subPath"), message);
        }
    }
}
