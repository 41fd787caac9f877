//! The HTTP client: TLS with the system's certificate authorities, and names resolved without libc.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{PullError, RegistriesConfig};
use crate::names;

/// A TCP and TLS handshake around the world takes a second or two; SYN retries need 1, 3 and 7 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that brings no byte for so long is dead; the download goes on by another.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client for one registry.
pub(super) fn build(
    registry: &str,
    plain_http: bool,
    config: &RegistriesConfig,
) -> Result<reqwest::Client, PullError> {
    let failed = |reason: String| PullError::Client {
        registry: registry.to_owned(),
        reason,
    };
    let own = config.ca_files.get(registry).map_or(&[][..], Vec::as_slice);
    let tls = tls_config(own, plain_http).map_err(failed)?;
    reqwest::Client::builder()
        .user_agent(concat!("podling/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(STALL_TIMEOUT)
        // Redirects to storage are followed, but never from TLS to plain HTTP.
        .https_only(!plain_http)
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(Resolver))
        .build()
        .map_err(|e| failed(e.to_string()))
}

fn tls_config(ca_files: &[PathBuf], plain_http: bool) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in ca_files {
        add_ca_file(&mut roots, path)?;
    }
    if roots.is_empty() && !plain_http {
        return Err(
            "this machine trusts no certificate authority: install the package ca-certificates, or name the registry's own authority in the configuration"
                .to_owned(),
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn add_ca_file(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| {
        let path = path.display();
        format!("cannot use the certificate authorities in {path}: {e}")
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))?;
    let mut found = false;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| failed(&e))?;
        roots.add(certificate).map_err(|e| failed(&e))?;
        found = true;
    }
    match found {
        true => Ok(()),
        false => Err(failed(&"there is no PEM certificate in it")),
    }
}

/// Resolves as the rest of the node does.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = names::resolve(name.as_str()).await?;
            // Port zero stands for that of the URL.
            let found = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            let addresses: Addrs = Box::new(found);
            Ok(addresses)
        })
    }
}
