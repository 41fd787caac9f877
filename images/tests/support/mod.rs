//! A real registry on loopback, images to put into it, and processes that are killed while they work on a store.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../src/test_archive.rs"]
pub mod test_archive;

pub mod facts;
pub mod killed;

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podling_images::{PullOptions, Reference, RegistriesConfig};
use test_archive::{TestImage, sha256};

/// `secret`, hashed with bcrypt for the user `me`.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Debian's `docker-registry` on a free port, killed when dropped.
pub struct Registry {
    child: Child,
    pub address: String,
    with_password: bool,
    _dir: tempfile::TempDir,
}

impl Registry {
    pub fn start(with_password: bool) -> Self {
        Self::start_with(with_password, "")
    }

    /// Speaks TLS, and only with clients that have a certificate. Files are those of [`certificates`].
    pub fn start_with_tls(files: &std::path::Path) -> Self {
        let file = |name: &str| files.join(name).display().to_string();
        let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let tls =
            format!("  tls:\n    certificate: {cert}\n    key: {key}\n    clientcas: [{ca}]\n");
        Self::start_with(false, &tls)
    }

    fn start_with(with_password: bool, http: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Freed for the registry at once; another program may take it, then the start fails and the test with it.
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let address = format!("127.0.0.1:{port}");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let auth = if with_password {
            let file = path("htpasswd");
            format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                file.display()
            )
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{http}{auth}",
            path("data").display()
        );
        std::fs::write(path("config.yml"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(path("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is needed: apt-get install docker-registry");
        let registry = Self {
            child,
            address,
            with_password,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    /// Pushes an image by the Distribution API.
    pub async fn push(&self, image: &TestImage, repository: &str, tag: &str) {
        for blob in image.blobs.iter().chain([&image.config]) {
            self.push_blob(repository, blob).await;
        }
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.push_manifest(repository, tag, media_type, &image.manifest)
            .await;
    }

    pub async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let base = format!("http://{}/v2/{repository}", self.address);
        let url = format!("{base}/blobs/uploads/");
        let response = self
            .request(reqwest::Method::POST, &url)
            .send()
            .await
            .unwrap();
        let location = response.headers()["location"].to_str().unwrap().to_owned();
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={}", sha256(blob));
        let request = self.request(reqwest::Method::PUT, &url).body(blob.to_vec());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 201, "{}", response.text().await.unwrap());
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, json: &[u8]) {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let request = self
            .request(reqwest::Method::PUT, &url)
            .header("Content-Type", media_type)
            .body(json.to_vec());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 201, "{}", response.text().await.unwrap());
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        // The client wants a provider of cryptography although no TLS is spoken here.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.request(method, url);
        if self.with_password {
            request.header("Authorization", "Basic bWU6c2VjcmV0")
        } else {
            request
        }
    }
}

/// For a registry on loopback that speaks no TLS.
pub fn plain_http(address: &str) -> RegistriesConfig {
    RegistriesConfig {
        plain_http: [address.to_owned()].into(),
        ..RegistriesConfig::default()
    }
}

/// Pulls from such a registry without any credentials.
pub fn pull_options(address: &str) -> PullOptions {
    PullOptions {
        docker_config: Some("/nonexistent".into()),
        registries: plain_http(address),
        ..PullOptions::default()
    }
}

/// A name at the registry of this address.
pub fn reference(address: &str, name: &str) -> Reference {
    format!("{address}/{name}").parse().unwrap()
}

/// Makes an authority, and certificates of it for a server on loopback and for a client.
pub fn certificates(dir: &std::path::Path) {
    let script = "set -e
        new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        openssl req -x509 $new -days 2 -subj /CN=ca -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem
        for name in server client; do
            openssl req $new -subj /CN=$name -keyout $name.key -out $name.csr
            echo subjectAltName=IP:127.0.0.1 > $name.ext
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
        done";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .expect("openssl is needed: apt-get install openssl");
    let errors = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{errors}");
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a program and gives what it printed; none if it is not installed.
pub fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => panic!("{program}: {e}"),
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
