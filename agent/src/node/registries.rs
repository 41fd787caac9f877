//! How registries are spoken to, and what a person can do when one does not give an image. The agent,
//! `podling run` and `podling images pull` all learn it here.

use podling_images::{ConnectKind, PullError, RegistriesConfig, RegistryError};

use super::Config;
use super::config::DEFAULT_CONFIG;

/// Where `hosts.toml` files are looked for when nothing else is said.
const DEFAULT_HOSTS_DIRECTORY: &str = "/etc/podling/certs.d";

/// `registries` and `images.hostsDirectory` of the configuration, as the image store wants it.
#[must_use]
pub fn settings(config: &Config) -> RegistriesConfig {
    let directory = config.images.hosts_directory.clone();
    let mut settings = RegistriesConfig {
        hosts_directory: Some(directory.unwrap_or_else(|| DEFAULT_HOSTS_DIRECTORY.into())),
        ..RegistriesConfig::default()
    };
    for registry in &config.registries {
        let host = registry.host.clone();
        if registry.plain_http {
            settings.plain_http.insert(host.clone());
        }
        if !registry.mirrors.is_empty() {
            let mirrors = registry.mirrors.clone();
            settings.mirrors.insert(host.clone(), mirrors);
        }
        if let Some(file) = &registry.ca_file {
            let files = settings.ca_files.entry(host).or_default();
            files.push(file.clone());
        }
    }
    settings
}

/// What may help after a failed pull; none where the error says it all.
#[must_use]
pub fn remedy(error: &PullError) -> Option<String> {
    let error = match error {
        PullError::Registry(error) => error,
        PullError::Distrust(distrust) => return Some(super::trust::remedy(distrust)),
        _ => return None,
    };
    remedy_of(error)
}

/// What may help after a registry failed; none where the error says it all.
#[must_use]
pub fn remedy_of(error: &RegistryError) -> Option<String> {
    match error.decisive() {
        RegistryError::Connect {
            registry, source, ..
        } => Some(remedy_of_connection(registry, source.kind())),
        RegistryError::Unauthorized { .. } => Some(
            "check the image's name; give credentials with imagePullSecrets in the pod, or with \
             ~/.docker/config.json on the node (`docker login` writes it)"
                .to_owned(),
        ),
        RegistryError::NotFound { .. } => {
            Some("check name and tag; a private image needs credentials".to_owned())
        }
        RegistryError::Hosts { .. } => Some(
            "correct the file; its form is that of containerd's hosts.toml, and docs/registries.md shows all of it"
                .to_owned(),
        ),
        RegistryError::Status { status: 429, .. } => Some(
            "the registry limits how much is pulled: wait, give credentials, or name a mirror in the configuration"
                .to_owned(),
        ),
        _ => None,
    }
}

fn remedy_of_connection(registry: &str, kind: ConnectKind) -> String {
    match kind {
        ConnectKind::Name => {
            "check the image's name, and the name servers in /etc/resolv.conf".to_owned()
        }
        ConnectKind::Refused => {
            format!("check host and port, and that a registry runs at {registry}")
        }
        ConnectKind::UntrustedCertificate => format!(
            "if you trust it, name the authority that signed its certificate in {DEFAULT_CONFIG}: \
             registries: [{{host: '{registry}', caFile: FILE}}]"
        ),
        ConnectKind::CertificateTime => {
            "check this machine's clock, and renew the registry's certificate".to_owned()
        }
        ConnectKind::Certificate => {
            "the registry's certificate must be made for the host that the image names".to_owned()
        }
        ConnectKind::NotTls => format!(
            "if it is meant to have no TLS, say so in {DEFAULT_CONFIG}: \
             registries: [{{host: '{registry}', plainHttp: true}}]"
        ),
        ConnectKind::TimedOut | ConnectKind::Other => {
            "check the network, and HTTPS_PROXY if there is a proxy".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_counts_for_its_own_registry_only() {
        let config = Config::parse(
            "registries:\n- {host: a.example, caFile: /a.pem, mirrors: [m.example]}\n- {host: 'b.example:5000', plainHttp: true}\n",
        )
        .expect("a configuration");
        let settings = settings(&config);
        assert_eq!(settings.ca_files.len(), 1);
        assert_eq!(
            settings.ca_files["a.example"],
            [std::path::PathBuf::from("/a.pem")]
        );
        assert_eq!(settings.mirrors["a.example"], ["m.example"]);
        assert_eq!(
            settings.hosts_directory,
            Some(DEFAULT_HOSTS_DIRECTORY.into())
        );
        assert!(settings.plain_http.contains("b.example:5000"));
        assert!(!settings.plain_http.contains("a.example"));
    }
}
