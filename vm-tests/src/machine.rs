//! A running virtual machine.
//!
//! Commands go over a virtio-serial port, one at a time. A request is a line `<number> <base64 of a shell script>`;
//! the answer is a line `done <number> <exit code> <base64 of its output>`. After each boot the guest says
//! `ready <boot id>`. A number that does not fit is an answer that came too late and is dropped.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::image::Image;
use crate::payload::Payload;
use crate::say;

/// An emulated machine on a busy host boots in one to several minutes.
const BOOT_DEADLINE: Duration = Duration::from_secs(900);

/// The longest that one command may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);

/// How much of the guest's console is shown when a test fails, in bytes.
const CONSOLE_TAIL_BYTES: usize = 8_000;

/// A virtual machine; it ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    control: BufReader<UnixStream>,
    next_number: u64,
    directory: tempfile::TempDir,
    // Its disk is in use.
    payload: Payload,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output and standard error.
    pub text: String,
}

impl Machine {
    /// Boots, and waits until the guest takes commands.
    ///
    /// # Errors
    /// When qemu cannot be started or the guest does not come up.
    pub fn boot(image: &Image, payload: Payload) -> io::Result<Self> {
        Self::start(image, payload, &[], "")
    }

    /// Boots a kernel with further parameters.
    ///
    /// # Errors
    /// When qemu cannot be started or the guest does not come up.
    pub fn boot_with_parameters(
        image: &Image,
        payload: Payload,
        parameters: &str,
    ) -> io::Result<Self> {
        Self::start(image, payload, &[], parameters)
    }

    /// Boots with further disks, `/dev/vdc` and on, which keep what is written to them.
    ///
    /// # Errors
    /// When qemu cannot be started or the guest does not come up.
    pub fn boot_with_disks(image: &Image, payload: Payload, disks: &[&Path]) -> io::Result<Self> {
        Self::start(image, payload, disks, "")
    }

    fn start(
        image: &Image,
        payload: Payload,
        disks: &[&Path],
        parameters: &str,
    ) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("control");
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-machine", MACHINE, "-accel", "tcg", "-cpu", PROCESSOR])
            .args([
                "-m",
                "2048",
                "-smp",
                "1",
                "-nographic",
                "-nodefaults",
                "-nic",
                "none",
            ])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd)
            .arg("-append")
            .arg(format!("{KERNEL_COMMAND_LINE} {parameters}"))
            .arg("-drive")
            .arg(format!(
                "file={},if=virtio,format=raw,snapshot=on",
                image.disk.display()
            ))
            .arg("-drive")
            .arg(format!(
                "file={},if=virtio,format=raw,snapshot=on",
                payload.disk()?.display()
            ))
            .args(disks.iter().flat_map(|disk| {
                // What the guest flushes is safe from the end of qemu, if not from that of the host.
                let disk = disk.display();
                let drive = format!("file={disk},if=virtio,format=raw,cache=unsafe");
                ["-drive".to_owned(), drive]
            }))
            .arg("-serial")
            .arg(format!(
                "file:{}",
                directory.path().join("console").display()
            ))
            .args(["-device", "virtio-serial-pci", "-device", "virtio-rng-pci"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=control,path={},server=on,wait=off",
                socket.display()
            ))
            .args([
                "-device",
                "virtserialport,chardev=control,name=podling.control",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("qemu"))?)
            .spawn()?;
        let mut guard = Guard(Some(qemu));
        let control = connect(&socket, &mut guard)?;
        let qemu = guard.0.take().ok_or(io::ErrorKind::NotFound)?;
        let mut machine = Self {
            qemu,
            control: BufReader::new(control),
            next_number: 1,
            directory,
            payload,
        };
        machine.wait_ready()?;
        say("the guest is up");
        Ok(machine)
    }

    /// Runs a shell script as root and waits for its end.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn run(&mut self, script: &str) -> io::Result<Output> {
        let number = self.send(script)?;
        let deadline = Instant::now() + COMMAND_DEADLINE;
        loop {
            let line = self.read_line(deadline)?;
            let mut words = line.split_whitespace();
            if words.next() != Some("done") || words.next() != Some(number.to_string().as_str()) {
                continue;
            }
            let code = words.next().and_then(|code| code.parse().ok());
            let text = BASE64.decode(words.next().unwrap_or_default()).ok();
            return match (code, text) {
                (Some(code), Some(text)) => Ok(Output {
                    code,
                    text: String::from_utf8_lossy(&text).into_owned(),
                }),
                _ => Err(io::Error::other(format!("the guest answered {line:?}"))),
            };
        }
    }

    /// Gives the guest a shell script, and the number that its answer will have.
    fn send(&mut self, script: &str) -> io::Result<u64> {
        let number = self.next_number;
        self.next_number += 1;
        let request = format!("{number} {}\n", BASE64.encode(script));
        self.control.get_mut().write_all(request.as_bytes())?;
        Ok(number)
    }

    /// Runs a shell script that must succeed, and gives its output.
    ///
    /// # Errors
    /// When it fails, with what it wrote.
    pub fn check(&mut self, script: &str) -> io::Result<String> {
        let output = self.run(script)?;
        if output.code == 0 {
            return Ok(output.text);
        }
        Err(io::Error::other(format!(
            "exit code {} of `{script}`:\n{}",
            output.code, output.text
        )))
    }

    /// Repeats a shell script until it succeeds, and gives its output.
    ///
    /// # Errors
    /// When it has not succeeded after `limit`, with what it wrote last.
    pub fn wait_for(&mut self, what: &str, limit: Duration, script: &str) -> io::Result<String> {
        let started = Instant::now();
        loop {
            let output = self.run(script)?;
            if output.code == 0 {
                return Ok(output.text);
            }
            if started.elapsed() > limit {
                return Err(io::Error::other(format!(
                    "waited {} s for: {what}; `{script}` says:\n{}",
                    limit.as_secs(),
                    output.text
                )));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Reboots in an orderly way and waits until the guest takes commands again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn reboot(&mut self) -> io::Result<()> {
        // What runs the command is ended by it, perhaps before it has answered.
        self.send("systemctl reboot --no-block")?;
        self.wait_ready()
    }

    /// Cuts the power: what the guest had not written to its disks is lost. Gives back what another machine may take.
    ///
    /// # Errors
    /// When no temporary directory can be made.
    pub fn cut_power(mut self) -> io::Result<Payload> {
        let empty = Payload::new()?;
        Ok(std::mem::replace(&mut self.payload, empty))
    }

    /// The end of the guest's console, for the message of a failed test.
    pub fn console_tail(&self) -> String {
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        let start = console.len().saturating_sub(CONSOLE_TAIL_BYTES);
        String::from_utf8_lossy(&console[start..]).into_owned()
    }

    fn wait_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + BOOT_DEADLINE;
        loop {
            let line = self.read_line(deadline).map_err(|error| {
                let console = self.console_tail();
                io::Error::new(
                    error.kind(),
                    format!("the guest does not come up: {error}\n{console}"),
                )
            })?;
            if line.starts_with("ready ") {
                return Ok(());
            }
        }
    }

    fn read_line(&mut self, deadline: Instant) -> io::Result<String> {
        let left = deadline
            .checked_duration_since(Instant::now())
            .ok_or(io::ErrorKind::TimedOut)?;
        self.control
            .get_ref()
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match self.control.read_line(&mut line) {
            Ok(0) => Err(io::Error::other(format!(
                "the machine ended: {}",
                fs::read_to_string(self.directory.path().join("qemu")).unwrap_or_default()
            ))),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the guest's console\n{}", self.console_tail());
        }
        end(&mut self.qemu);
    }
}

/// No initial delay for the console, a reboot that really resets, and nothing against the flaws of real processors, which
/// an emulated one has not. On a busy host the kernel measures the processor's counter wrongly, so that its clock goes
/// several times too fast: it takes the timer of ACPI. Nor does it try whether interrupts of its timer come in time, and
/// panic where they do not.
const KERNEL_COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet loglevel=4 systemd.show_status=false net.ifnames=0 panic=10 mitigations=off tsc=unstable no_timer_check";

/// One processor: emulating two costs half as much again for the same work (atomic instructions, page tables changed in
/// both, qemu's lock), and another guest has the host's other one. It is of an old kind: qemu emulates the page tables of
/// five levels and the vector instructions of newer ones, which no test is about.
const PROCESSOR: &str = "Nehalem";

/// Without an emulated HPET: a guest that takes it for its clock asks it at every turn, each time under qemu's one lock,
/// and now and then comes to a standstill with qemu's threads all busy.
const MACHINE: &str = "q35,hpet=off";

/// Ends qemu when a start fails half-way.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(end);
    }
}

fn end(qemu: &mut Child) {
    if let Err(error) = qemu.kill().and_then(|()| qemu.wait().map(drop)) {
        eprintln!("cannot end qemu: {error}");
    }
}

/// qemu makes the socket shortly after its start.
fn connect(socket: &PathBuf, qemu: &mut Guard) -> io::Result<UnixStream> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
        if let Some(status) = qemu
            .0
            .as_mut()
            .and_then(|qemu| qemu.try_wait().ok().flatten())
        {
            return Err(io::Error::other(format!("qemu ended at once: {status}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
