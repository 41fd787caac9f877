//! Debian's buildah with `--runtime podling-runtime`: `buildah run`, and `RUN` of a Dockerfile.
#![cfg(feature = "privileged-tests")]

mod callers_support;

use std::fs;

use callers_support::{Machine, stderr, stdout};

/// Buildah with storage of its own, and a working container called `base` whose image is `localhost/base`.
struct Buildah {
    machine: Machine,
}

impl Buildah {
    fn new() -> Self {
        let machine = Machine::new();
        let path = machine.path().display();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{path}/run\"\ngraphroot = \"{path}/graph\"\n"
        );
        fs::write(machine.path().join("storage.conf"), storage).expect("storage.conf");
        fs::write(machine.path().join("containers.conf"), "").expect("containers.conf");
        let root = machine.image_rootfs();
        let buildah = Self { machine };
        buildah.ok(&format!(
            "buildah from --name base scratch && buildah copy --quiet base {} / && buildah config --env A=1 base &&
             buildah commit --quiet base base",
            root.display()
        ));
        buildah
    }

    /// Runs a script; gives its exit code, standard output and standard error. `run` is `buildah run` in `base`.
    fn run(&self, script: &str) -> (i32, String, String) {
        let output = self.machine.run(&format!(
            "export CONTAINERS_CONF=$PWD/containers.conf CONTAINERS_STORAGE_CONF=$PWD/storage.conf
             export BUILDAH_ISOLATION=oci
             run() {{ buildah run --runtime $RUNTIME --network host $OPTIONS base \"$@\"; }}
             {script}"
        ));
        let code = output.status.code().expect("an exit code");
        (code, stdout(&output), stderr(&output))
    }

    /// As [`Self::run`], and it must work; gives what it printed.
    fn ok(&self, script: &str) -> String {
        let (code, said, errors) = self.run(script);
        assert_eq!(code, 0, "{script}: {said}\n{errors}");
        said
    }
}

#[test]
fn buildah_runs_a_command_and_takes_its_exit_code() {
    let buildah = Buildah::new();
    assert_eq!(buildah.ok("run sh -c 'echo $A; id -u'"), "1\n0");
    let (code, _, errors) = buildah.run("run sh -c 'exit 3'");
    assert_eq!(code, 3, "{errors}");
    let bound = buildah.ok("mkdir host; echo of the host > host/file
         OPTIONS=\"--user 5 -v $PWD/host:/mnt:ro\" run sh -c 'id -u; cat /mnt/file'");
    assert_eq!(bound, "5\nof the host");
}

#[test]
fn buildah_gives_a_terminal() {
    let buildah = Buildah::new();
    let terminal = buildah.ok(
        "script --quiet --command \"buildah run --runtime $RUNTIME --network host --tty base tty\" /dev/null",
    );
    assert!(terminal.contains("/dev/pts/0"), "{terminal}");
}

#[test]
fn buildah_builds_from_a_dockerfile() {
    let buildah = Buildah::new();
    let context = buildah.machine.path().join("context");
    fs::create_dir(&context).expect("a directory");
    fs::write(context.join("file"), "of the context\n").expect("a file");
    let dockerfile = "FROM localhost/base\nCOPY file /file\nRUN cat /file > /copy && echo built >> /copy\n\
                      RUN --mount=type=cache,target=/cache touch /cache/file\nENV B=2\nRUN echo $A $B >> /copy\n";
    fs::write(context.join("Dockerfile"), dockerfile).expect("a Dockerfile");
    let copy = buildah.ok(
        "buildah bud --runtime $RUNTIME --network host --pull-never --quiet --tag built context > /dev/null
         buildah from --pull-never --name result built > /dev/null
         buildah run --runtime $RUNTIME --network host result cat /copy",
    );
    assert_eq!(copy, "of the context\nbuilt\n1 2");
}
