//! Debian's real etcd, one for each test: on free ports of the loopback interface, in a temporary directory.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podling_agent::node::config::EtcdConfig;
use tempfile::TempDir;

/// An etcd on a busy machine takes seconds to start.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An etcd server, killed at the end.
pub struct Etcd {
    pub dir: TempDir,
    pub url: String,
    peer_url: String,
    options: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    pub fn start() -> Self {
        Self::start_with("http", |_| Vec::new())
    }

    pub fn start_with(scheme: &str, options: impl Fn(&TempDir) -> Vec<String>) -> Self {
        let dir = TempDir::new().expect("a directory");
        let mut etcd = Self {
            url: format!("{scheme}://127.0.0.1:{}", free_port()),
            peer_url: format!("http://127.0.0.1:{}", free_port()),
            options: options(&dir),
            dir,
            process: None,
        };
        etcd.run();
        etcd
    }

    pub fn run(&mut self) {
        let log = File::create(self.dir.path().join("log")).expect("a log");
        let mut command = Command::new("/usr/bin/etcd");
        command
            .args(["--name", "test", "--unsafe-no-fsync"])
            .arg(format!(
                "--data-dir={}",
                self.dir.path().join("data").display()
            ))
            .arg(format!("--listen-client-urls={}", self.url))
            .arg(format!("--advertise-client-urls={}", self.url))
            .arg(format!("--listen-peer-urls={}", self.peer_url))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url))
            .arg(format!("--initial-cluster=test={}", self.peer_url))
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(command.spawn().expect("etcd-server is installed"));
        let deadline = Instant::now() + PATIENCE;
        while !self.try_ctl(&["endpoint", "health"]) {
            assert!(Instant::now() < deadline, "etcd does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("waited for");
        }
    }

    pub fn ctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.url))
            .args(["--command-timeout=5s"])
            .args(args);
        if self.url.starts_with("https") {
            let file = |name: &str| self.dir.path().join(name).display().to_string();
            command.arg(format!("--cacert={}", file("ca.pem")));
            command.arg(format!("--cert={}", file("client.pem")));
            command.arg(format!("--key={}", file("client.key")));
        }
        command
    }

    pub fn try_ctl(&self, args: &[&str]) -> bool {
        let output = self.ctl(args).output().expect("etcd-client is installed");
        output.status.success()
    }

    pub fn run_ctl(&self, args: &[&str]) -> String {
        let output = self.ctl(args).output().expect("etcd-client is installed");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn put(&self, name: &str, text: &str) {
        self.run_ctl(&["put", &format!("/test/manifests/{name}"), text]);
    }

    pub fn delete(&self, name: &str) {
        self.run_ctl(&["del", &format!("/test/manifests/{name}")]);
    }

    pub fn get(&self, key: &str) -> String {
        self.run_ctl(&["get", "--print-value-only", key])
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.url.clone()],
            prefix: "/test/".to_owned(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
    }
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Turns on authentication, with a user `node` of the role `node`, which may read manifests.
pub fn enable_authentication(etcd: &Etcd) {
    for args in [
        &["role", "add", "root"][..],
        &["user", "add", "root:secret"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "node"],
        &["user", "add", "node:secret"],
        &["user", "grant-role", "node", "node"],
        &["auth", "enable"],
    ] {
        etcd.run_ctl(args);
    }
    grant(etcd, "read", "/test/manifests/");
}

pub fn grant(etcd: &Etcd, permission: &str, prefix: &str) {
    etcd.run_ctl(&[
        "--user=root:secret",
        "role",
        "grant-permission",
        "node",
        "--prefix=true",
        permission,
        prefix,
    ]);
}

pub fn as_user(etcd: &Etcd) -> EtcdConfig {
    let file = etcd.dir.path().join("password");
    std::fs::write(&file, "secret\n").expect("written");
    EtcdConfig {
        username: Some("node".to_owned()),
        password_file: Some(file),
        ..etcd.config()
    }
}

/// An authority and two certificates, for the server and for clients.
pub fn certificates(dir: &TempDir) {
    let script = "set -e\n\
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca \
            -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem\n\
        for name in server client; do\n\
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr\n\
        printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=serverAuth,clientAuth\\n' > $name.ext\n\
        openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext \
            -out $name.pem\n\
        done\n";
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir.path())
        .output();
    let made = made.expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
}
