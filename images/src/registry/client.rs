//! The HTTP client of one host: TLS with the system's certificate authorities, and names resolved without libc.
//!
//! It follows no redirect and waits without a limit: both is the endpoint's business.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::RegistryError;
use super::host::{ClientCertificate, Host, Scheme};
use super::patience::Patience;
use super::proxy::Proxies;
use crate::names;

/// A client for one host.
pub(super) fn build(
    host: &Host,
    patience: &Patience,
    proxies: Proxies,
) -> Result<reqwest::Client, RegistryError> {
    let failed = |reason: String| RegistryError::Client {
        registry: host.name.clone(),
        reason,
    };
    let tls = tls_config(host).map_err(failed)?;
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("podling/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(host.dial_timeout.unwrap_or(patience.connect))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .dns_resolver(Arc::new(Resolver));
    if let Some(proxy) = proxies.into_client_proxy() {
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|e| failed(e.to_string()))
}

fn tls_config(host: &Host) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in &host.ca_files {
        add_ca_file(&mut roots, path)?;
    }
    if roots.is_empty() && host.scheme == Scheme::Https && !host.skip_verify {
        return Err(
            "this machine trusts no certificate authority: install the package ca-certificates, or name the registry's own authority in the configuration"
                .to_owned(),
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match host.skip_verify {
        true => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
        false => builder.with_root_certificates(roots),
    };
    // A TLS client sends one certificate; containerd too takes the first that the host accepts, mostly the only one.
    match &host.client_certificates[..] {
        [] => Ok(builder.with_no_client_auth()),
        [own] => {
            let (chain, key) = read_client_certificate(own)?;
            let path = own.certificate.display();
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| format!("cannot use the client certificate {path}: {e}"))
        }
        [first, second, ..] => Err(format!(
            "it has several client certificates, of which only one can be sent: keep {} or {}",
            first.certificate.display(),
            second.certificate.display()
        )),
    }
}

fn add_ca_file(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), String> {
    let failed = |e: &dyn Display| {
        let path = path.display();
        format!("cannot use the certificate authorities in {path}: {e}")
    };
    for certificate in read_certificates(path).map_err(|e| failed(&e))? {
        roots.add(certificate).map_err(|e| failed(&e))?;
    }
    Ok(())
}

fn read_client_certificate(
    own: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let path = own.certificate.display();
    let chain = read_certificates(&own.certificate)
        .map_err(|e| format!("cannot use the client certificate {path}: {e}"))?;
    let key_path = own.key.as_ref().unwrap_or(&own.certificate);
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|e| {
        let key_path = key_path.display();
        format!("cannot use the key {key_path} of the client certificate {path}: {e}")
    })?;
    Ok((chain, key))
}

/// All certificates of a PEM file; at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|e| e.to_string())?
        .collect();
    let certificates = certificates.map_err(|e| e.to_string())?;
    match certificates.is_empty() {
        true => Err("there is no PEM certificate in it".to_owned()),
        false => Ok(certificates),
    }
}

/// `skip_verify`: any certificate will do, as long as the host has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::registry::test_server::{Reply, serve};

    /// The first request that a proxy sees for an address, and its `Proxy-Authorization`.
    async fn seen_by_proxy(variable: &str, host: &Host, url: &str) -> (String, Option<String>) {
        let seen = Arc::new(Mutex::new(None));
        let log = Arc::clone(&seen);
        let proxy = serve(move |request| {
            let line = format!("{} {}", request.method, request.path);
            let authorization = request.headers.get("proxy-authorization").cloned();
            log.lock().unwrap().get_or_insert((line, authorization));
            // A tunnel is refused: there is nobody to speak TLS with.
            Reply::new(
                if request.method == "CONNECT" {
                    403
                } else {
                    200
                },
                b"",
            )
        })
        .await;
        let proxies =
            Proxies::read(|name| (name == variable).then(|| format!("http://me:secret@{proxy}")));
        let client = build(host, &Patience::default(), proxies.unwrap()).unwrap();
        // With a tunnel that is refused this fails; what was asked for is what counts.
        drop(client.get(url).send().await);
        let seen = seen.lock().unwrap().take();
        seen.unwrap()
    }

    #[tokio::test]
    async fn requests_go_through_the_proxy_with_its_password_and_names_are_left_to_it() {
        let basic = Some("Basic bWU6c2VjcmV0".to_owned());
        let host = Host {
            scheme: Scheme::Http,
            skip_verify: true,
            ..Host::new("reg.invalid")
        };
        let url = "http://reg.invalid/v2/";
        let seen = seen_by_proxy("HTTP_PROXY", &host, url).await;
        assert_eq!(seen, (format!("GET {url}"), basic.clone()));
        let url = "https://reg.invalid/v2/";
        let seen = seen_by_proxy("https_proxy", &host, url).await;
        assert_eq!(seen, ("CONNECT reg.invalid:443".to_owned(), basic));
    }

    #[test]
    fn certificates_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.pem");
        std::fs::write(&path, "no PEM").unwrap();
        let own = |key: Option<&str>| ClientCertificate {
            certificate: path.clone(),
            key: key.map(|key| dir.path().join(key)),
        };
        let host = Host {
            skip_verify: true,
            ..Host::new("reg.example")
        };
        for (host, part) in [
            (
                Host {
                    ca_files: vec![path.clone()],
                    ..host.clone()
                },
                "certificate authorities in",
            ),
            (
                Host {
                    client_certificates: vec![own(Some("none.key"))],
                    ..host.clone()
                },
                "client certificate",
            ),
            (
                Host {
                    client_certificates: vec![own(None), own(None)],
                    ..host.clone()
                },
                "only one can be sent",
            ),
        ] {
            let built = build(&host, &Patience::default(), Proxies::default());
            let error = built.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains("own.pem"), "{error}");
        }
    }
}
