//! The architectures whose system calls a kernel that runs Podling takes, and the names and numbers of these calls.
//!
//! An x86-64 kernel takes those of x86 and x32 programs too, an arm64 kernel those of arm. What a profile says of other
//! architectures is about calls that nobody makes here.

use std::ops::RangeInclusive;

use oci_spec::runtime::Arch;

/// x32's system calls have this bit (`arch/x86/include/uapi/asm/unistd.h`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Numbers and names of the kernel's table for an architecture.
macro_rules! table {
    ($architecture:ident) => {{
        use syscalls::$architecture::Sysno;
        // Its own iterator leaves out the last one.
        (0..=Sysno::last().id() as usize)
            .filter_map(Sysno::new)
            .map(|it| (it.id() as u32, it.name()))
    }};
}

/// One architecture's system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Architecture {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

impl Architecture {
    /// The machine's own.
    pub(super) const NATIVE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// Of a profile; None for one that no kernel here knows.
    pub(super) fn of(name: Arch) -> Option<Self> {
        match name {
            Arch::ScmpArchNative => Some(Self::NATIVE),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            Arch::ScmpArchMips
            | Arch::ScmpArchMips64
            | Arch::ScmpArchMips64n32
            | Arch::ScmpArchMipsel
            | Arch::ScmpArchMipsel64
            | Arch::ScmpArchMipsel64n32
            | Arch::ScmpArchPpc
            | Arch::ScmpArchPpc64
            | Arch::ScmpArchPpc64le
            | Arch::ScmpArchS390
            | Arch::ScmpArchS390x
            | Arch::ScmpArchRiscv64
            | Arch::ScmpArchParisc
            | Arch::ScmpArchParisc64
            | Arch::ScmpArchLoongarch64
            | Arch::ScmpArchM68k
            | Arch::ScmpArchSh
            | Arch::ScmpArchSheb => None,
        }
    }

    /// The kernel's `AUDIT_ARCH_*` (linux/audit.h). x32 has that of x86-64, and its bit in the numbers.
    pub(super) const fn token(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Arguments have 32 bits. x32's come in registers of 64, of which the upper half counts for nothing there.
    pub(super) const fn is_narrow(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Where its numbers begin.
    pub(super) const fn first_number(self) -> u32 {
        match self {
            Self::X32 => X32_BIT,
            Self::X86_64 | Self::X86 | Self::Aarch64 | Self::Arm => 0,
        }
    }

    /// All its system calls that have a number of their own, also those with two names.
    pub(super) fn each_call(self, mut each: impl FnMut(u32, &'static str)) {
        match self {
            Self::X86_64 => table!(x86_64).for_each(|(number, name)| each(number, name)),
            Self::X32 => {
                for (number, name) in table!(x86_64).filter(|it| !X86_64_ONLY.contains(&it.1)) {
                    let own = X32_OWN.iter().position(|other| *other == name);
                    let number = own.map_or(number, |index| X32_OWN_FIRST + index as u32);
                    each(X32_BIT | number, name);
                }
            }
            Self::X86 => {
                each(17, "break");
                table!(x86).for_each(|(number, name)| each(number, name));
            }
            Self::Aarch64 => {
                each(79, "newfstatat");
                table!(aarch64)
                    .filter(|(number, _)| !TIME64.contains(number))
                    .for_each(|(number, name)| each(number, name));
            }
            Self::Arm => {
                let own = ARM_OWN.iter().map(|(name, number)| (*number, *name));
                table!(arm)
                    .chain(own)
                    .for_each(|(number, name)| each(number, name));
            }
        }
    }
}

/// True for the name of a system call of any architecture that Linux has.
pub(super) fn is_known(name: &str) -> bool {
    macro_rules! is_of {
        ($($architecture:ident),*) => { $(table!($architecture).any(|it| it.1 == name))||* };
    }
    let is_of = |architecture: Architecture| {
        let mut found = false;
        architecture.each_call(|_, other| found |= other == name);
        found
    };
    let ours = [
        Architecture::X86_64,
        Architecture::X86,
        Architecture::Aarch64,
        Architecture::Arm,
    ];
    ours.into_iter().any(is_of)
        || MULTIPLEXED.iter().any(|it| it.name == name)
        || is_of!(riscv64, riscv32, s390x, powerpc, powerpc64, mips, mips64)
        || is_of!(loongarch64, sparc, sparc64)
}

/// The number of [`X32_OWN`]'s first (`arch/x86/entry/syscalls/syscall_64.tbl`).
const X32_OWN_FIRST: u32 = 512;

/// Calls that x32 has under other numbers than x86-64, since their arguments are laid out in another way, in the order of
/// these numbers.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// Calls of x86-64 that x32 has not.
const X86_64_ONLY: [&str; 14] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "map_shadow_stack",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uprobe",
    "uretprobe",
    "uselib",
    "vserver",
];

/// Calls with 64-bit times, which only architectures of 32 bits need (`scripts/syscall.tbl`, time32).
const TIME64: RangeInclusive<u32> = 403..=423;

/// arm's private calls (`arch/arm/include/uapi/asm/unistd.h`).
const ARM_OWN: [(&str, u32); 6] = [
    ("breakpoint", 0xf0001),
    ("cacheflush", 0xf0002),
    ("usr26", 0xf0003),
    ("usr32", 0xf0004),
    ("set_tls", 0xf0005),
    ("get_tls", 0xf0006),
];

/// A system call that 32-bit x86 has within another one: what it does is in that one's first argument, its own arguments
/// are in memory, where no filter sees them.
#[derive(Debug)]
pub(super) struct Multiplexed {
    pub(super) name: &'static str,
    /// socketcall(2) or ipc(2).
    pub(super) within: u32,
    /// What it is there.
    pub(super) number: u64,
}

impl Multiplexed {
    const fn new(name: &'static str, within: u32, number: u64) -> Self {
        Self {
            name,
            within,
            number,
        }
    }

    /// The bits of the first argument that say what the call does: above them, ipc(2) has a version
    /// (`ksys_ipc` in ipc/syscall.c of Linux).
    pub(super) const fn mask(&self) -> u64 {
        match self.within {
            IPC => 0xffff,
            _ => 0xffff_ffff,
        }
    }
}

const SOCKETCALL: u32 = 102;
const IPC: u32 = 117;

/// `SYS_*` of linux/net.h, and the calls of linux/ipc.h.
pub(super) const MULTIPLEXED: [Multiplexed; 32] = [
    Multiplexed::new("socket", SOCKETCALL, 1),
    Multiplexed::new("bind", SOCKETCALL, 2),
    Multiplexed::new("connect", SOCKETCALL, 3),
    Multiplexed::new("listen", SOCKETCALL, 4),
    Multiplexed::new("accept", SOCKETCALL, 5),
    Multiplexed::new("getsockname", SOCKETCALL, 6),
    Multiplexed::new("getpeername", SOCKETCALL, 7),
    Multiplexed::new("socketpair", SOCKETCALL, 8),
    Multiplexed::new("send", SOCKETCALL, 9),
    Multiplexed::new("recv", SOCKETCALL, 10),
    Multiplexed::new("sendto", SOCKETCALL, 11),
    Multiplexed::new("recvfrom", SOCKETCALL, 12),
    Multiplexed::new("shutdown", SOCKETCALL, 13),
    Multiplexed::new("setsockopt", SOCKETCALL, 14),
    Multiplexed::new("getsockopt", SOCKETCALL, 15),
    Multiplexed::new("sendmsg", SOCKETCALL, 16),
    Multiplexed::new("recvmsg", SOCKETCALL, 17),
    Multiplexed::new("accept4", SOCKETCALL, 18),
    Multiplexed::new("recvmmsg", SOCKETCALL, 19),
    Multiplexed::new("sendmmsg", SOCKETCALL, 20),
    Multiplexed::new("semop", IPC, 1),
    Multiplexed::new("semget", IPC, 2),
    Multiplexed::new("semctl", IPC, 3),
    Multiplexed::new("semtimedop", IPC, 4),
    Multiplexed::new("msgsnd", IPC, 11),
    Multiplexed::new("msgrcv", IPC, 12),
    Multiplexed::new("msgget", IPC, 13),
    Multiplexed::new("msgctl", IPC, 14),
    Multiplexed::new("shmat", IPC, 21),
    Multiplexed::new("shmdt", IPC, 22),
    Multiplexed::new("shmget", IPC, 23),
    Multiplexed::new("shmctl", IPC, 24),
];
