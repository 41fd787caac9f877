//! Debian's real registry inside a node's network namespace.

use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::{Node, image};

/// `secret`, hashed with bcrypt for the user `me`.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// `me:secret`, as Docker's configuration has it.
pub const AUTH: &str = "bWU6c2VjcmV0";

/// What a registry asks for and speaks.
#[derive(Default)]
pub struct Options {
    /// TLS, with a certificate of the node's `ca.pem` for 127.0.0.1 and `registry.test`.
    pub tls: bool,
    /// Basic authentication: `me` and `secret`.
    pub password: bool,
}

/// A registry, killed when dropped.
pub struct Registry {
    child: Child,
    port: u16,
    options: Options,
}

impl Registry {
    /// A registry on this port of the node's loopback interface. All registries of a node have the same content.
    pub fn start(node: &Node, port: u16, options: Options) -> Self {
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            node.path("registry").display()
        );
        if options.tls {
            certificates(node);
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                node.path("server.pem").display(),
                node.path("server.key").display()
            );
        }
        if options.password {
            let file = node.path("htpasswd");
            fs::write(&file, HTPASSWD).unwrap();
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                file.display()
            );
        }
        let file = node.path(format!("registry-{port}.yml"));
        fs::write(&file, config).unwrap();
        let mut command = node.command("docker-registry");
        command.arg("serve").arg(&file);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self {
            child: command.spawn().expect("Debian's docker-registry"),
            port,
            options,
        };
        node.wait("the registry answers", || {
            node.in_network(|| TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
        });
        registry
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Copies an OCI archive into the registry with skopeo.
    #[track_caller]
    pub fn push(&self, node: &Node, archive: &Path, name: &str) {
        let mut command = node.command("skopeo");
        command.args(["copy", "--insecure-policy", "--dest-tls-verify=false"]);
        if self.options.password {
            command.args(["--dest-creds", "me:secret"]);
        }
        command
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.host()));
        let push = command.output().expect("skopeo");
        let errors = String::from_utf8_lossy(&push.stderr);
        assert!(push.status.success(), "{errors}");
    }

    /// Copies the busybox image into the registry.
    #[track_caller]
    pub fn push_busybox(&self, node: &Node, name: &str) {
        let archive = node.path("push.tar");
        image::busybox_archive(&archive, "latest");
        self.push(node, &archive, name);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A configuration file of the node.
pub fn configure(node: &Node, text: &str) -> PathBuf {
    let file = node.path("config.yaml");
    fs::write(&file, text).unwrap();
    file
}

/// An authority `ca.pem`, and a certificate `server.pem` with its key, once for each node.
fn certificates(node: &Node) {
    if node.path("server.pem").exists() {
        return;
    }
    let script = "set -e\n\
        new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'\n\
        openssl req -x509 $new -days 2 -subj /CN=ca -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem\n\
        openssl req $new -subj /CN=registry -keyout server.key -out server.csr\n\
        printf 'subjectAltName=IP:127.0.0.1,DNS:registry.test\\nextendedKeyUsage=serverAuth\\n' > server.ext\n\
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext \
            -out server.pem\n";
    let made = std::process::Command::new("sh")
        .args(["-c", script])
        .current_dir(node.path(""))
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{made:?}");
}

/// Passes connections on to another port of the node, and stops all of them once so many bytes have come back:
/// whoever downloads more waits for ever.
pub fn stalling_proxy(node: &Node, port: u16, target: u16, bytes: usize) {
    let listener = node.in_network(|| TcpListener::bind(("127.0.0.1", port)).unwrap());
    // A socket made in the namespace stays there; one to the target is made there as well.
    let connect = node.connector();
    let budget = std::sync::Arc::new(std::sync::Mutex::new(bytes));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = connect(target);
            let (mut up_from, mut up_to) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                drop(std::io::copy(&mut up_from, &mut up_to));
                drop(up_to.shutdown(Shutdown::Write));
            });
            let budget = std::sync::Arc::clone(&budget);
            std::thread::spawn(move || drop(pass_on(server, client, &budget)));
        }
    });
}

fn pass_on(
    mut from: TcpStream,
    mut to: TcpStream,
    budget: &std::sync::Mutex<usize>,
) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let mut buffer = [0; 16 << 10];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let left = {
            let mut budget = budget.lock().unwrap();
            *budget = budget.saturating_sub(count);
            *budget
        };
        if left == 0 {
            // Holds the connection open until the test ends.
            loop {
                std::thread::park();
            }
        }
        to.write_all(&buffer[..count])?;
    }
}
