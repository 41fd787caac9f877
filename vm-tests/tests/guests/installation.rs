//! Podling in a guest, as a package would put it there.

use podling_vm_tests::payload::Payload;
use podling_vm_tests::{artifact, workspace};

/// Puts the programs and the units in their places; `$manifests` are the examples that the node has from the start.
const SCRIPT: &str = "set -e
install -D -m 755 /payload/podling /usr/bin/podling
install -D -m 755 /payload/podling-pod /usr/libexec/podling/podling-pod
install -D -m 755 /payload/podling-runtime /usr/bin/podling-runtime
install -m 644 /payload/units/*.service /payload/units/*.slice /etc/systemd/system
install -D -m 644 /payload/units/podling.tmpfiles /usr/lib/tmpfiles.d/podling.conf
install -D -m 644 /payload/units/podling.sysusers /usr/lib/sysusers.d/podling.conf
systemctl daemon-reload
systemd-sysusers
systemd-tmpfiles --create podling.conf
for name in $manifests; do install -m 644 /payload/examples/$name.yaml /etc/podling/manifests; done
systemctl enable --now podling.service";

/// Adds the programs, the units and the examples to what the guest gets.
pub fn add_to(payload: &Payload) {
    add_programs_to(payload);
    for (directory, name) in [("systemd/units", "units"), ("examples", "examples")] {
        payload
            .add_directory(&workspace().join(directory), name)
            .unwrap();
    }
}

/// Adds the programs alone.
pub fn add_programs_to(payload: &Payload) {
    for (name, program) in artifact::programs().unwrap() {
        payload.add_program(&program, &name).unwrap();
    }
}

/// The shell script that installs and starts it, with examples as manifests.
pub fn script(manifests: &[&str]) -> String {
    format!("manifests='{}'\n{SCRIPT}", manifests.join(" "))
}
