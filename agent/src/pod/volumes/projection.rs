//! configMap, secret, downwardAPI and projected: what files a volume made of objects has. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

use super::{VolumeContext, VolumeError};
use crate::pod::env;

/// Kubernetes' default for files of such volumes.
const DEFAULT_MODE: u32 = 0o644;

/// One file of a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectedFile {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// The files of a volume by relative path, and whether they are secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Projection {
    pub(super) files: BTreeMap<String, ProjectedFile>,
    pub(super) secret: bool,
}

/// The files of a volume, or None when it is of another kind.
pub(super) fn collect(
    volume: &Volume,
    context: &VolumeContext<'_>,
) -> Result<Option<Projection>, VolumeError> {
    let mut collector = Collector {
        volume: &volume.name,
        context,
        projection: Projection::default(),
    };
    if let Some(source) = &volume.config_map {
        let mode = file_mode(source.default_mode);
        collector.config_map(&source.name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.secret {
        let mode = file_mode(source.default_mode);
        let name = source.secret_name.as_deref().unwrap_or_default();
        collector.secret(name, source.items.as_deref(), source.optional, mode)?;
    } else if let Some(source) = &volume.downward_api {
        collector.downward(
            source.items.as_deref().unwrap_or_default(),
            file_mode(source.default_mode),
        )?;
    } else if let Some(source) = &volume.projected {
        let mode = file_mode(source.default_mode);
        for part in source.sources.iter().flatten() {
            collector.part(part, mode)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(collector.projection))
}

fn file_mode(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok())
        .map_or(DEFAULT_MODE, |m| m & 0o777)
}

struct Collector<'a> {
    volume: &'a str,
    context: &'a VolumeContext<'a>,
    projection: Projection,
}

impl Collector<'_> {
    fn part(&mut self, part: &VolumeProjection, mode: u32) -> Result<(), VolumeError> {
        if let Some(source) = &part.config_map {
            return self.config_map(&source.name, source.items.as_deref(), source.optional, mode);
        }
        if let Some(source) = &part.secret {
            return self.secret(&source.name, source.items.as_deref(), source.optional, mode);
        }
        if let Some(source) = &part.downward_api {
            return self.downward(source.items.as_deref().unwrap_or_default(), mode);
        }
        Err(self.invalid("a projected source is of a kind that is not supported: use configMap, secret or downwardAPI"))
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let optional = optional.unwrap_or(false);
        let Some(map) = self.context.objects.config_map(name) else {
            return self.absent(optional, format!("configmap \"{name}\" not found"));
        };
        let text = map
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.as_bytes()));
        let binary = map
            .binary_data
            .iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.0.as_slice()));
        self.keys(
            &format!("configmap \"{name}\""),
            &text.chain(binary).collect(),
            items,
            optional,
            mode,
        )
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: u32,
    ) -> Result<(), VolumeError> {
        self.projection.secret = true;
        let optional = optional.unwrap_or(false);
        let Some(secret) = self.context.objects.secret(name) else {
            return self.absent(optional, format!("secret \"{name}\" not found"));
        };
        let data = secret
            .data
            .iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.0.as_slice()))
            .collect();
        self.keys(&format!("secret \"{name}\""), &data, items, optional, mode)
    }

    fn keys(
        &mut self,
        owner: &str,
        data: &BTreeMap<&str, &[u8]>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: u32,
    ) -> Result<(), VolumeError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in data {
                self.add(key, content.to_vec(), mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(item.key.as_str()) {
                Some(content) => {
                    let mode = item.mode.map_or(mode, |m| file_mode(Some(m)));
                    self.add(&item.path, content.to_vec(), mode)?;
                }
                None => self.absent(optional, format!("{owner} has no key \"{}\"", item.key))?,
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], mode: u32) -> Result<(), VolumeError> {
        for item in items {
            let mode = item.mode.map_or(mode, |m| file_mode(Some(m)));
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => env::field_value(field, self.context.facts),
                (None, Some(resource)) => env::resource_value(resource, None, self.context.facts),
                (None, None) => {
                    return Err(
                        self.invalid("a downwardAPI file needs a fieldRef or a resourceFieldRef")
                    );
                }
            };
            let value = value.map_err(|source| VolumeError::Downward {
                volume: self.volume.to_owned(),
                source,
            })?;
            self.add(&item.path, value.into_bytes(), mode)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, content: Vec<u8>, mode: u32) -> Result<(), VolumeError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if path.starts_with("..") || !path.split('/').all(plain) || path.contains('\0') {
            return Err(self.invalid(&format!("`{path}` is not a relative path without `..`")));
        }
        if let Some(other) = self
            .projection
            .files
            .keys()
            .find(|known| nested(known, path) || nested(path, known))
        {
            let other = other.clone();
            return Err(self.invalid(&format!(
                "`{path}` and `{other}` are file and directory at once"
            )));
        }
        self.projection
            .files
            .insert(path.to_owned(), ProjectedFile { content, mode });
        Ok(())
    }

    fn absent(&self, optional: bool, reason: String) -> Result<(), VolumeError> {
        if optional {
            Ok(())
        } else {
            Err(VolumeError::Missing {
                volume: self.volume.to_owned(),
                reason,
            })
        }
    }

    fn invalid(&self, reason: &str) -> VolumeError {
        VolumeError::Invalid {
            volume: self.volume.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// True when `inner` lies below `outer`.
fn nested(outer: &str, inner: &str) -> bool {
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::pod::env::{NoObjects, PodFacts};
    use crate::pod::resources::Capacity;

    #[test]
    fn downward_files_take_fields_of_the_pod_and_resources_of_its_containers() {
        let spec: PodSpec = serde_saphyr::from_str(
            "containers: [{ name: c, resources: { limits: { memory: 5Mi } } }]\n\
             volumes:\n\
             - name: v\n  \
               downwardAPI:\n    \
                 items:\n    \
                 - { path: name, fieldRef: { fieldPath: metadata.name } }\n    \
                 - path: memory\n      \
                   resourceFieldRef: { containerName: c, resource: limits.memory, divisor: 1Mi }\n",
        )
        .expect("a spec");
        let metadata = ObjectMeta {
            name: Some("web".to_owned()),
            ..ObjectMeta::default()
        };
        let facts = PodFacts {
            metadata: &metadata,
            spec: Some(&spec),
            service_account: "default",
            node_name: "node",
            host_ip: std::net::Ipv4Addr::LOCALHOST.into(),
            pod_ips: &[],
            capacity: Capacity {
                cpu_millis: 1000,
                memory_bytes: 1 << 30,
                swap: false,
            },
        };
        let context = VolumeContext {
            objects: &NoObjects,
            facts: &facts,
            memory_limit_bytes: None,
        };
        let volume = &spec.volumes.as_ref().expect("volumes")[0];
        let found = collect(volume, &context)
            .expect("files")
            .expect("a projection");
        let contents = found.files.into_iter().map(|(path, file)| {
            let text = String::from_utf8(file.content).expect("text");
            format!("{path}={text}")
        });
        assert_eq!(contents.collect::<Vec<_>>(), ["memory=5", "name=web"]);
    }
}
