//! Published escapes by way of paths and mounts: each test tries the attack on real containers and sees it fail.
//!
//! The attacker chose the image, and shares a volume with the container that is being made, in which it moves things
//! as fast as it can.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use oci_spec::runtime::{HookBuilder, HooksBuilder, MountBuilder};
use oci_support::{Bundle, stderr, stdout, until};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};

/// How often a race is run. The swapper moves thousands of times in the life of one container.
const RACES: usize = 40;

fn swap(a: &Path, b: &Path) {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("swaps");
}

/// A thread that exchanges two directory entries for as long as this lives.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn start(a: &Path, b: &Path) -> Self {
        let (a, b) = (a.to_owned(), b.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                swap(&a, &b);
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the swapper failed");
        }
    }
}

/// A directory beside the bundle's root file system.
fn directory(bundle: &Bundle, name: &str) -> PathBuf {
    let path = bundle.path().join(name);
    fs::create_dir(&path).expect("directory");
    path
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).expect("reads").next().is_none()
}

/// Removes the spec's mounts at these places.
fn without_mounts(bundle: &mut Bundle, destinations: &[&str]) {
    let mut mounts = bundle.spec.mounts().clone().unwrap_or_default();
    mounts.retain(|m| !destinations.iter().any(|d| m.destination() == Path::new(d)));
    bundle.spec.set_mounts(Some(mounts));
}

/// Mounts something below `/vol/target` of a volume in which somebody swaps `target` for a link to a directory of the
/// host, again and again. Nothing may be made or mounted there, and the container must see its own root.
fn race_for_a_target(destination: &str) {
    let mut bundle = Bundle::sh("cat /marker; cat /proc/self/mountinfo");
    let (volume, outside) = (directory(&bundle, "volume"), directory(&bundle, "outside"));
    fs::write(bundle.rootfs().join("marker"), "own root").expect("marker");
    let (target, link) = (volume.join("target"), volume.join("link"));
    fs::create_dir(&target).expect("target");
    symlink(&outside, &link).expect("link");

    // The attack is real: who looks first and then goes by name is led outside, if the swap comes in between.
    let real = fs::canonicalize(&target).expect("resolves");
    assert!(real.starts_with(&volume));
    swap(&target, &link);
    fs::write(target.join("made"), "").expect("a careless write");
    fs::remove_file(outside.join("made")).expect("it went outside");
    let swapper = Swapper::start(&target, &link);

    bundle.bind(&volume, "/vol", &["rbind"]);
    let secret = bundle.path().join("secret");
    fs::write(&secret, "").expect("secret");
    bundle.bind(&secret, destination, &["bind"]);
    bundle.write();
    let mut ran = 0;
    for _ in 0..RACES {
        let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
        let said = String::from_utf8_lossy(&output.stdout);
        // It may also fail: what it was making moved away. Then it says so, and nothing ran.
        assert_eq!(output.status.success(), said.starts_with("own root"));
        ran += usize::from(output.status.success());
        assert!(is_empty(&outside), "{}", stderr(&output));
    }
    drop(swapper);
    println!("{ran} of {RACES} started");
    assert!(ran > 0, "no container started");
}

#[test]
fn cve_2021_30465_a_mount_target_swapped_for_a_link_stays_inside() {
    race_for_a_target("/vol/target");
}

/// Parents and the target itself are made where the link was a moment ago.
#[test]
fn cve_2024_45310_nothing_is_made_on_the_host_by_a_race() {
    race_for_a_target("/vol/target/deep/er/file");
}

/// The image decides where `/proc` is, or a volume does: the masks below it would be put elsewhere. CVE-2023-27561 and
/// youki's CVE-2025-54867 are the same by the image alone.
#[test]
fn cve_2019_19921_and_2023_28642_proc_and_sys_are_mounted_through_no_link() {
    for (name, destination, to) in [
        ("proc", "/proc", "/vol/moved"),
        ("proc", "/proc", "tmp"),
        ("sys", "/sys", "/tmp"),
    ] {
        let mut bundle = Bundle::sh("true");
        let volume = directory(&bundle, "volume");
        fs::create_dir(volume.join("moved")).expect("directory");
        symlink(to, bundle.rootfs().join(name)).expect("link");
        let mut mounts = bundle.spec.mounts().clone().unwrap_or_default();
        bundle.bind(&volume, "/vol", &["bind"]);
        let volume_mount = bundle.spec.mounts_mut().as_mut().and_then(Vec::pop);
        mounts.insert(0, volume_mount.expect("the mount"));
        bundle.spec.set_mounts(Some(mounts));
        let message = bundle.run_fails();
        assert!(
            message.contains(destination) && message.contains("no symbolic link"),
            "{message}"
        );
        assert!(is_empty(&volume.join("moved")));
    }
}

/// The image's `/dev` is a link to a directory of the host: neither nodes nor links are made there, and the `ptmx` of the
/// host's is not replaced.
#[test]
fn cve_2026_41579_a_dev_that_is_a_link_makes_nothing_on_the_host() {
    for target in ["OUTSIDE", "../../../../../../../../OUTSIDE"] {
        let mut bundle = Bundle::sh("ls -l /dev/null /dev/ptmx /dev/fd");
        without_mounts(
            &mut bundle,
            &["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"],
        );
        let outside = directory(&bundle, "outside");
        fs::write(outside.join("ptmx"), "the host's").expect("file");
        let path = outside.to_str().expect("UTF-8");
        symlink(target.replace("OUTSIDE", path), bundle.rootfs().join("dev")).expect("link");
        // A link whose target is in the image too: all is made there, and nowhere else.
        fs::create_dir_all(bundle.rootfs().join(path.trim_start_matches('/'))).expect("target");
        let said = bundle.run();
        assert!(said.contains("pts/ptmx"), "{said}");
        let names: Vec<_> = fs::read_dir(&outside)
            .expect("reads")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["ptmx"]);
        let ptmx = fs::read_to_string(outside.join("ptmx")).expect("reads");
        assert_eq!(ptmx, "the host's");
    }
}

/// Somebody who shares the root file system moves `/proc` away between its mount and the masks: the paths to be
/// masked are looked for in what was mounted, not where it was.
#[test]
fn masks_find_a_proc_that_was_moved_away() {
    let mut bundle = Bundle::sh(
        "/bin/busybox stat -c '%t:%T' /moved/timer_list; echo x >/moved/sys/kernel/hostname",
    );
    let rootfs = bundle.rootfs();
    fs::create_dir(rootfs.join("proc")).expect("proc");
    bundle
        .linux()
        .set_masked_paths(Some(vec!["/proc/timer_list".to_owned()]));
    bundle
        .linux()
        .set_readonly_paths(Some(vec!["/proc/sys".to_owned()]));
    // It runs once all is mounted, and waits for the attacker.
    let (now, done) = (bundle.path().join("now"), bundle.path().join("done"));
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.01; done",
        now.display(),
        done.display()
    );
    let hook = HookBuilder::default()
        .path("/bin/sh")
        .args(["sh", "-c", &script].map(str::to_owned))
        .env(vec!["PATH=/bin:/usr/bin".to_owned()])
        .timeout(60)
        .build()
        .expect("a hook");
    let hooks = HooksBuilder::default()
        .create_container(vec![hook])
        .build()
        .expect("hooks");
    bundle.spec.set_hooks(Some(hooks));
    let attacker = std::thread::spawn(move || {
        until("the hook runs", || now.exists());
        fs::rename(rootfs.join("proc"), rootfs.join("moved")).expect("moves");
        fs::create_dir(rootfs.join("proc")).expect("a false one");
        fs::write(done, "").expect("told");
    });
    let said = bundle.run_with_any_exit();
    attacker.join().expect("the attacker");
    // /dev/null, and nothing was written.
    assert_eq!(said, "1:3");
}

/// The image's `/dev/null` is a link to what the attacker wants to have mounted over a masked path, or becomes one.
/// youki's CVE-2025-62161 is the same.
#[test]
fn cve_2025_31133_paths_are_masked_with_the_hosts_null() {
    let mut bundle = Bundle::sh("/bin/busybox stat -c '%t:%T' /masked; cat /masked");
    let devices = directory(&bundle, "devices");
    let (null, link) = (devices.join("null"), devices.join("link"));
    rustix::fs::mknodat(
        CWD,
        &null,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .expect("node");
    for name in ["masked", "wanted"] {
        fs::write(bundle.rootfs().join(name), name).expect("file");
    }
    symlink("/wanted", &link).expect("link");
    without_mounts(
        &mut bundle,
        &["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"],
    );
    bundle.bind(&devices, "/dev", &["bind"]);
    bundle
        .linux()
        .set_masked_paths(Some(vec!["/masked".to_owned()]));
    let swapper = Swapper::start(&null, &link);
    for _ in 0..RACES / 4 {
        assert_eq!(bundle.run(), "1:3");
    }
    drop(swapper);
}

/// The mask is the host's own node: a container's root must not change its mode, or the whole machine's `/dev/null`
/// is gone. The mode tried here is the one that it has.
#[test]
fn a_mask_lends_no_power_over_the_hosts_null() {
    let mut bundle = Bundle::sh(
        "echo x >/masked && chmod 666 /masked 2>&1; touch /masked 2>&1; chmod 666 /own && echo control",
    );
    for name in ["masked", "own"] {
        fs::write(bundle.rootfs().join(name), "").expect("file");
    }
    bundle
        .linux()
        .set_masked_paths(Some(vec!["/masked".to_owned()]));
    let null = || fs::metadata("/dev/null").expect("null");
    let before = null();
    let said = bundle.run();
    assert!(
        said.starts_with("chmod: /masked: Read-only file system")
            && said.contains("touch: /masked: Read-only file system")
            && said.ends_with("control"),
        "{said}"
    );
    assert!(null().file_type().is_char_device());
    assert_eq!(
        (null().mode(), null().ctime()),
        (before.mode(), before.ctime())
    );
}

/// The image's `/dev/pts` and `/dev/console` are what the attacker wants to have bound, and where.
#[test]
fn cve_2025_52565_the_console_is_a_terminal_of_a_real_devpts() {
    // A false devpts: a link where the terminal's device is expected.
    let mut bundle = Bundle::sh("true");
    without_mounts(
        &mut bundle,
        &["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"],
    );
    let pts = bundle.rootfs().join("dev/pts");
    fs::create_dir_all(&pts).expect("pts");
    for name in ["0", "ptmx"] {
        symlink("/proc/sysrq-trigger", pts.join(name)).expect("link");
    }
    bundle.process().set_terminal(Some(true));
    let message = bundle.run_fails();
    assert!(message.contains("terminal"), "{message}");

    // A link where the console belongs: the terminal covers what it leads to, and the masks are put over that.
    let mut bundle = Bundle::sh(
        "/bin/busybox stat -c %t /proc/self/fd/0 -L; (echo h >/proc/sys/kernel/hostname) 2>&1; cat /secret",
    );
    without_mounts(&mut bundle, &["/dev", "/dev/shm", "/dev/mqueue"]);
    fs::create_dir_all(bundle.rootfs().join("dev/pts")).expect("pts");
    symlink("/secret", bundle.rootfs().join("dev/console")).expect("link");
    fs::write(bundle.rootfs().join("secret"), "seen").expect("file");
    bundle.process().set_terminal(Some(true));
    bundle
        .linux()
        .set_masked_paths(Some(vec!["/secret".to_owned()]));
    bundle
        .linux()
        .set_readonly_paths(Some(vec!["/proc/sys".to_owned()]));
    let said = bundle.run();
    assert!(said.starts_with("88"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(!said.contains("seen"), "{said}");
}

/// A volume over `/proc` catches what the runtime means to write there: the OOM score, sysctls, security labels. youki's
/// CVE-2025-62596 is the last of these.
#[test]
fn cve_2025_52881_and_2019_16884_a_false_proc_catches_no_write() {
    let mut bundle = Bundle::sh(
        "cat /real/self/oom_score_adj /real/sys/net/core/somaxconn; touch /up; while true; do sleep 1000; done",
    );
    let fake = directory(&bundle, "fake");
    fs::create_dir_all(fake.join("self/attr")).expect("self");
    fs::create_dir_all(fake.join("sys/net/core")).expect("sys");
    let victims = [
        "self/oom_score_adj",
        "self/attr/exec",
        "sys/net/core/somaxconn",
    ];
    for victim in victims {
        fs::write(fake.join(victim), "untouched").expect("file");
    }
    without_mounts(&mut bundle, &["/proc"]);
    bundle.bind(&fake, "/proc", &["bind"]);
    bundle.mount(
        MountBuilder::default()
            .destination("/real")
            .typ("proc")
            .source("proc")
            .build()
            .expect("a mount"),
    );
    bundle.process().set_oom_score_adj(Some(321));
    bundle.linux().set_sysctl(Some(
        [("net.core.somaxconn".to_owned(), "777".to_owned())].into(),
    ));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it is up", || bundle.rootfs().join("up").exists());
    let wanted = [
        "cat",
        "/real/1/oom_score_adj",
        "/real/sys/net/core/somaxconn",
    ];
    let seen = bundle.exec(&wanted);
    assert_eq!(oci_support::stdout(&seen), "321\n777", "{}", stderr(&seen));

    let mut process = bundle.process().clone();
    process.set_oom_score_adj(Some(654)).set_args(Some(
        ["cat", "/real/self/oom_score_adj"]
            .map(str::to_owned)
            .into(),
    ));
    let file = bundle.path().join("process.json");
    fs::write(&file, serde_json::to_vec(&process).expect("JSON")).expect("file");
    let file = file.to_str().expect("UTF-8").to_owned();
    assert_eq!(bundle.ok(&["exec", "--process", &file, &bundle.id]), "654");
    for victim in victims {
        let text = fs::read_to_string(fake.join(victim)).expect("reads");
        assert_eq!(text, "untouched", "{victim}");
    }
}

/// While a container is made, `/proc/self/root` and `/proc/self/fd/N` in it lead to the host.
#[test]
fn magic_links_lead_no_mount_to_the_host() {
    let names = [
        "/proc/self/root/OUTSIDE/x",
        "/proc/1/root/OUTSIDE/x",
        "/proc/self/cwd/x",
        "/proc/thread-self/root/OUTSIDE/x",
        "/proc/self/fd/3",
        "/proc/self/exe",
        "/link/OUTSIDE/x",
    ];
    for name in names {
        let mut bundle = Bundle::sh("true");
        let outside = directory(&bundle, "outside");
        let path = outside.to_str().expect("UTF-8").trim_start_matches('/');
        symlink("/proc/self/root", bundle.rootfs().join("link")).expect("link");
        let destination = name.replace("OUTSIDE", path);
        bundle.bind(&outside, &destination, &["bind"]);
        let message = bundle.run_fails();
        assert!(message.contains(&destination), "{message}");
        assert!(is_empty(&outside), "{destination}");
    }
}

/// The same links as working directory, as path to be masked and as place of a device.
#[test]
fn magic_links_lead_nothing_else_to_the_host() {
    let mut bundle = Bundle::sh("true");
    bundle.process().set_cwd("/proc/self/root/tmp".into());
    let message = bundle.run_fails();
    assert!(message.contains("working directory"), "{message}");

    for (what, path) in [
        ("mask", "/proc/self/root/etc"),
        ("read-only", "/proc/self/exe"),
    ] {
        let mut bundle = Bundle::sh("true");
        let paths = Some(vec![path.to_owned()]);
        if what == "mask" {
            bundle.linux().set_masked_paths(paths);
        } else {
            bundle.linux().set_readonly_paths(paths);
        }
        let message = bundle.run_fails();
        assert!(
            message.contains(what) && message.contains(path),
            "{message}"
        );
    }

    let mut bundle = Bundle::sh("true");
    let device: oci_spec::runtime::LinuxDevice = serde_json::from_value(serde_json::json!({
        "path": "/proc/self/root/tmp/device", "type": "c", "major": 1, "minor": 3
    }))
    .expect("a device");
    bundle.linux().set_devices(Some(vec![device]));
    let message = bundle.run_fails();
    assert!(message.contains("device"), "{message}");
    assert!(!Path::new("/tmp/device").exists());
}

/// Who makes a user namespace may mount a procfs in it if the mount namespace has one that nothing covers: then none of
/// the masks is there. The host's would be such a one, although it is out of sight.
#[test]
fn without_pivot_root_no_procfs_of_the_host_is_left() {
    let attack = "unshare -Urmpf sh -c 'mount -t proc proc /tmp && echo mounted'";
    let mut bundle = Bundle::sh(attack);
    bundle.process().user_mut().set_uid(1000);
    let bundle_arg = bundle.bundle_arg();
    let run = |bundle: &Bundle| {
        bundle.write();
        bundle.runtime(&["run", "--no-pivot", "-b", &bundle_arg, &bundle.id])
    };
    let refused = |bundle: &Bundle| {
        let output = run(bundle);
        assert_eq!(stdout(&output), "", "{}", stderr(&output));
        assert!(stderr(&output).contains("mount: "), "{}", stderr(&output));
    };
    refused(&bundle);
    // One procfs over another, as where `unshare --mount-proc` has been: the lower one goes too.
    nix::mount::mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounts");
    refused(&bundle);
    bundle
        .linux()
        .set_masked_paths(None)
        .set_readonly_paths(None);
    let output = run(&bundle);
    assert_eq!(stdout(&output), "mounted", "{}", stderr(&output));
}
