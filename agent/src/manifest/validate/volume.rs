//! Volumes, and the mounts that name them.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, PodSpec, Volume, VolumeMount,
};

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
        volume(&path, each, spec, faults);
    }
}

fn volume(path: &str, volume: &Volume, spec: &PodSpec, faults: &mut Faults) {
    // What other sources there are, the support table refuses.
    let sources = [
        volume.empty_dir.is_some(),
        volume.host_path.is_some(),
        volume.config_map.is_some(),
        volume.secret.is_some(),
        volume.downward_api.is_some(),
        volume.projected.is_some(),
    ];
    let others = serde_json::to_value(volume).ok();
    let others = others.and_then(|value| value.as_object().map(serde_json::Map::len));
    match sources.iter().filter(|is| **is).count() {
        0 if others <= Some(1) => faults.add_with(
            path,
            "the volume says nothing about where it comes from",
            "add emptyDir, hostPath, configMap, secret, downwardAPI or projected",
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
    projections(path, volume, spec, faults);
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

/// Volumes that are made of several things.
fn projections(path: &str, volume: &Volume, spec: &PodSpec, faults: &mut Faults) {
    if let Some(downward) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        mode(
            &format!("{path}.defaultMode"),
            downward.default_mode,
            faults,
        );
        downward_items(&path, downward.items.as_deref(), spec, faults);
    }
    let Some(projected) = &volume.projected else {
        return;
    };
    let path = format!("{path}.projected");
    mode(
        &format!("{path}.defaultMode"),
        projected.default_mode,
        faults,
    );
    for (at, source) in projected.sources.iter().flatten().enumerate() {
        let path = format!("{path}.sources[{at}]");
        if let Some(map) = &source.config_map {
            let path = format!("{path}.configMap");
            reference(&path, "name", &map.name, faults);
            items(&path, map.items.as_deref(), None, faults);
        }
        if let Some(secret) = &source.secret {
            let path = format!("{path}.secret");
            reference(&path, "name", &secret.name, faults);
            items(&path, secret.items.as_deref(), None, faults);
        }
        if let Some(downward) = &source.downward_api {
            downward_items(
                &format!("{path}.downwardAPI"),
                downward.items.as_deref(),
                spec,
                faults,
            );
        }
        // What other sources there are, the support table refuses.
        let given = serde_json::to_value(source).ok();
        let given = given.and_then(|value| value.as_object().map(serde_json::Map::len));
        if given != Some(1) {
            let remedy = "give configMap, secret or downwardAPI";
            faults.add_with(path, "a source is exactly one thing", remedy);
        }
    }
}

fn downward_items(
    path: &str,
    items: Option<&[DownwardAPIVolumeFile]>,
    spec: &PodSpec,
    faults: &mut Faults,
) {
    for (at, item) in items.unwrap_or_default().iter().enumerate() {
        let path = format!("{path}.items[{at}]");
        mode(&format!("{path}.mode"), item.mode, faults);
        file_path(&path, &item.path, faults);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), None) => {
                let path = format!("{path}.fieldRef.fieldPath");
                super::container::volume_field(&path, &field.field_path, faults);
            }
            (None, Some(resource)) => {
                let path = format!("{path}.resourceFieldRef");
                if resource
                    .container_name
                    .as_deref()
                    .unwrap_or_default()
                    .is_empty()
                {
                    faults.add(format!("{path}.containerName"), "required");
                }
                super::container::resource_field(&path, resource, spec, faults);
            }
            _ => faults.add(path, "an item is of fieldRef or resourceFieldRef"),
        }
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
        file_path(&path, &item.path, faults);
    }
}

fn file_path(path: &str, file: &str, faults: &mut Faults) {
    let path = format!("{path}.path");
    if file.is_empty() {
        faults.add(path, "required");
    } else if let Err(message) = text::inner_path(file) {
        faults.add(path, message);
    } else if file.starts_with("..") {
        faults.add(path, "may not begin with `..`");
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

/// What one sees of mounts that are made below a volume, and whether they can be written to.
fn propagation(path: &str, mount: &VolumeMount, container: &Container, faults: &mut Faults) {
    let field = format!("{path}.mountPropagation");
    let kind = mount.mount_propagation.as_deref();
    faults.one_of(&field, kind, &["None", "HostToContainer", "Bidirectional"]);
    let context = container.security_context.as_ref();
    if kind == Some("Bidirectional") && context.is_none_or(|c| c.privileged != Some(true)) {
        faults.add(field, "only for privileged containers");
    }
    let field = format!("{path}.recursiveReadOnly");
    let recursive = mount.recursive_read_only.as_deref();
    faults.one_of(&field, recursive, &["Disabled", "IfPossible", "Enabled"]);
    if matches!(recursive, Some("IfPossible" | "Enabled")) {
        if mount.read_only != Some(true) {
            faults.add_with(
                &field,
                "only for a mount that is read-only",
                "add `readOnly: true`",
            );
        } else if kind.is_some_and(|kind| kind != "None") {
            faults.add(&field, "only without mountPropagation");
        }
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
        propagation(&path, mount, container, faults);
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
        if let Some(sub_path) = mount
            .sub_path_expr
            .as_deref()
            .filter(|path| !path.is_empty())
        {
            let path = format!("{path}.subPathExpr");
            if mount
                .sub_path
                .as_deref()
                .is_some_and(|path| !path.is_empty())
            {
                faults.add(&path, "not together with subPath");
            }
            if let Err(message) = text::inner_path(sub_path) {
                faults.add(path, message);
            }
        }
    }
}
