//! The image store of a machine whose power fails while images arrive.
//!
//! Two ways to lose power: the file system is shut down at once without writing anything more (the ioctl that xfstests
//! uses), which is cheap and done often, at moments spread over the whole work; and the whole machine is, which costs a
//! boot and is done once, in the midst of a pull: it shows that the ioctl leaves out nothing that a machine's end takes.
//! Both lose what was written and not yet on the disk. Processes that are killed are tried on the host (the images
//! crate's crash tests).

use std::path::Path;
use std::time::Duration;

use podling_vm_tests::image::{self, Image};
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::say;

use crate::installation;

/// How often the file system goes away while an archive is loaded, and while an image is pulled.
const CUTS: u32 = 10;

/// Mounts the disk, and makes an image of the guest's own files.
const MAKE_IMAGE: &str = r#"set -e
mkdir -p /data /tmp/app && mount /dev/vdc /data
cd /tmp/app
tar -C / -cf one.tar etc
tar -C / -cf two.tar var/lib/dpkg
tar -C / -cf three.tar usr/lib/systemd
digest() { printf '"sha256:%s"' "$(sha256sum "$1" | cut -d ' ' -f 1)"; }
cat >config.json <<END
{"architecture": "amd64", "os": "linux", "config": {},
 "rootfs": {"type": "layers", "diff_ids": [$(digest one.tar), $(digest two.tar), $(digest three.tar)]}}
END
cat >manifest.json <<END
[{"Config": "config.json", "RepoTags": ["127.0.0.1:5055/app:1"], "Layers": ["one.tar", "two.tar", "three.tar"]}]
END
tar -cf /tmp/app.tar manifest.json config.json one.tar two.tar three.tar
podling images --data-dir /tmp/whole load /tmp/app.tar"#;

/// Starts a registry that has the image.
const SERVE_IMAGE: &str = r#"set -e
cat >/tmp/registry.yml <<END
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/registry}}
http: {addr: "127.0.0.1:5055"}
END
cat >/tmp/podling.yaml <<END
registries:
  - host: 127.0.0.1:5055
    plainHttp: true
END
ip link set lo up
setsid docker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &
for i in $(seq 300); do curl -sf http://127.0.0.1:5055/v2/ >/dev/null && break; sleep 0.2; done
curl -sf http://127.0.0.1:5055/v2/ || { cat /tmp/registry.log; exit 1; }
podling images --data-dir /tmp/whole --config /tmp/podling.yaml push 127.0.0.1:5055/app:1"#;

/// The commands whose work is cut.
const LOAD: &str = "podling images --data-dir /data load /tmp/app.tar";
const PULL: &str =
    "podling images --data-dir /data --config /tmp/podling.yaml pull 127.0.0.1:5055/app:1";

struct Node {
    machine: Machine,
}

impl Node {
    fn boot(image: &Image, payload: Payload, disk: &Path) -> Self {
        let machine = Machine::boot_with_disks(image, payload, &[disk]).unwrap();
        let mut node = Self { machine };
        node.check("install -m 755 /payload/podling /usr/bin/podling");
        node.check(MAKE_IMAGE);
        node.check(SERVE_IMAGE);
        node
    }

    fn check(&mut self, script: &str) -> String {
        let said = self.machine.check(script);
        said.unwrap_or_else(|error| panic!("{error}"))
    }

    /// How long a command takes on a store that is empty, in milliseconds of the guest.
    fn duration_of(&mut self, command: &str) -> u32 {
        let script = format!(
            "rm -rf /data/images; sync; a=$(date +%s%3N); {command} >/dev/null 2>&1 && b=$(date +%s%3N) && echo $((b - a))"
        );
        self.check(&script).trim().parse().unwrap()
    }

    /// Runs a command and shuts the file system down after some time; what then is on the disk is a sound store.
    fn cut(&mut self, command: &str, after: Duration) {
        let seconds = after.as_secs_f64();
        self.check(&format!(
            r#"{command} >/tmp/said 2>&1 & pid=$!
sleep {seconds}
# FS_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: not even the journal is written.
perl -e 'open(F, "<", "/data") or die $!; $how = pack("L", 2); ioctl(F, 0x8004587d, $how) or die $!' || exit 1
kill -KILL $pid 2>/dev/null
wait $pid
umount /data && mount /dev/vdc /data || exit 1"#
        ));
        self.is_sound();
    }

    /// The store is whole, as far as it is there.
    fn is_sound(&mut self) {
        let said = self.check("podling images --data-dir /data verify");
        say(said.trim());
    }

    /// The image arrives after all, and is what was sent.
    fn arrives(&mut self, command: &str) {
        self.check(command);
        self.is_sound();
        let digest =
            "podling images --data-dir DIR inspect 127.0.0.1:5055/app:1 | grep -m 1 '\"digest\"'";
        let arrived = self.check(&digest.replace("DIR", "/data"));
        assert_eq!(arrived, self.check(&digest.replace("DIR", "/tmp/whole")));
    }
}

#[test]
fn a_power_cut_leaves_a_sound_store() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("data.ext4");
    image::make_journaled_disk(&disk, "1G").unwrap();
    let payload = Payload::new().unwrap();
    installation::add_programs_to(&payload);
    let image = Image::build().unwrap();
    let mut node = Node::boot(&image, payload, &disk);
    for command in [LOAD, PULL] {
        let whole = node.duration_of(command);
        for cut in 0..CUTS {
            say(&format!(
                "cut {cut} of {CUTS}, `{command}` takes {whole} ms"
            ));
            // Every other time it goes on from what the last cut left.
            if cut % 2 == 0 {
                node.check("rm -rf /data/images; sync");
            }
            node.cut(command, Duration::from_millis((whole * cut / CUTS).into()));
        }
        node.arrives(command);
    }
    say("the machine's power is cut");
    let half_secs = f64::from(node.duration_of(PULL) / 2) / 1000.0;
    node.check("rm -rf /data/images; sync");
    node.check(&format!("{PULL} >/dev/null 2>&1 & sleep {half_secs}"));
    let payload = node.machine.cut_power().unwrap();
    let mut node = Node::boot(&image, payload, &disk);
    node.is_sound();
    node.arrives(PULL);
}
