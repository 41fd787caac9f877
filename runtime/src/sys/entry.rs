//! The start of `podling-runtime`, before the C library's: a first execution that only passes on to the sealed one.
//!
//! [`crate::container::protect::seal`] executes the program a second time; from `main` both executions would pay for the
//! C library's start and the pages that it touches: with musl 3 % of a short command, with glibc a fifth (it asks the
//! processor for its features, and each `cpuid` leaves a virtual machine). So the commands that make processes do here
//! what `seal` does, with nothing but system calls: no C library, no allocation, no thread-local storage exist yet.
//!
//! Nothing depends on it. Where a step fails, or the linker was not told of this entry (`build.rs`), the C library
//! starts as ever, and `seal` does the same or tells why it cannot. Whether the program runs sealed is checked there.
//!
//! ```text
//! podling_entry: no argument "run", "exec", "create" ─────────► _start (C library, main)
//!     readlink(/proc/self/exe) is "/": sealed already ────────► _start
//!     open_tree(/proc/self/exe, CLONE) = 3
//!     mount_setattr(3, RDONLY)
//!     execveat(3, "", argv, envp, AT_EMPTY_PATH) ─► podling_entry of the sealed program
//! ```

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

// Registers of the x86-64 ABI at a program's start: rsp points to argc, argv…, 0, envp…, 0; rdx holds what `_start`
// registers with atexit. Kept here: rbx = rsp at the start, r12 = rdx. System calls destroy rcx, r11 and rax only.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    // A section of its own, which the linker can put beside what follows it.
    ".pushsection .text.podling_entry, \"ax\", @progbits",
    ".globl podling_entry",
    ".type podling_entry, @function",
    "podling_entry:",
    "    xor ebp, ebp",
    "    mov rbx, rsp",
    "    mov r12, rdx",
    // Is there an argument "run", "exec" or "create"? A word of 4 or 8 bytes beyond the end of a short argument is
    // still on the stack: the environment and the program's name follow.
    "    lea rsi, [rbx + 16]",
    "2:  mov rdi, [rsi]",
    "    test rdi, rdi",
    "    jz 9f",
    "    add rsi, 8",
    "    mov eax, [rdi]",
    "    cmp eax, {run}",
    "    je 3f",
    "    cmp eax, {exec}",
    "    jne 4f",
    "    cmp byte ptr [rdi + 4], 0",
    "    je 3f",
    "4:  cmp eax, {crea}",
    "    jne 2b",
    "    cmp word ptr [rdi + 4], {te}",
    "    jne 2b",
    "    cmp byte ptr [rdi + 6], 0",
    "    jne 2b",
    // readlink(path, buffer, 2), the buffer below the stack pointer. "/" alone is one byte.
    "3:  sub rsp, 64",
    "    lea rdi, [rip + 7f]",
    "    mov rsi, rsp",
    "    mov edx, 2",
    "    mov eax, {readlink}",
    "    syscall",
    "    cmp rax, 1",
    "    je 9f",
    // open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    "    mov edi, {cwd}",
    "    lea rsi, [rip + 7f]",
    "    mov edx, {clone}",
    "    mov eax, {open_tree}",
    "    syscall",
    "    test eax, eax",
    "    js 9f",
    "    mov r13d, eax",
    // mount_setattr(fd, "", AT_EMPTY_PATH, {attr_set: RDONLY, 0, 0, 0}, 32)
    "    xor eax, eax",
    "    mov qword ptr [rsp], {read_only}",
    "    mov [rsp + 8], rax",
    "    mov [rsp + 16], rax",
    "    mov [rsp + 24], rax",
    "    mov edi, r13d",
    "    lea rsi, [rip + 8f]",
    "    mov edx, {empty_path}",
    "    mov r10, rsp",
    "    mov r8d, 32",
    "    mov eax, {mount_setattr}",
    "    syscall",
    "    test eax, eax",
    "    jnz 6f",
    // execveat(fd, "", argv, envp, AT_EMPTY_PATH); envp is 8 * (argc + 2) bytes above argc.
    "    mov edi, r13d",
    "    lea rsi, [rip + 8f]",
    "    lea rdx, [rbx + 8]",
    "    mov r10, [rbx]",
    "    lea r10, [rbx + r10 * 8 + 16]",
    "    mov r8d, {empty_path}",
    "    mov eax, {execveat}",
    "    syscall",
    // Still here: as if nothing had happened.
    "6:  mov edi, r13d",
    "    mov eax, {close}",
    "    syscall",
    "9:  mov rsp, rbx",
    "    mov rdx, r12",
    "    jmp _start",
    "7:  .asciz \"/proc/self/exe\"",
    "8:  .asciz \"\"",
    ".popsection",
    run = const u32::from_le_bytes(*b"run\0"),
    exec = const u32::from_le_bytes(*b"exec"),
    crea = const u32::from_le_bytes(*b"crea"),
    te = const u16::from_le_bytes(*b"te"),
    readlink = const libc::SYS_readlink,
    open_tree = const libc::SYS_open_tree,
    mount_setattr = const libc::SYS_mount_setattr,
    execveat = const libc::SYS_execveat,
    close = const libc::SYS_close,
    cwd = const libc::AT_FDCWD,
    clone = const libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
    read_only = const libc::MOUNT_ATTR_RDONLY,
    empty_path = const libc::AT_EMPTY_PATH,
);

/// The arguments of a program whose `main` is the C library's: the standard library knows them with some C libraries
/// only.
///
/// # Safety
/// What the C library gave `main`: `count` pointers to strings that end with a zero.
pub unsafe fn arguments(count: c_int, arguments: *const *const c_char) -> Vec<OsString> {
    (0..usize::try_from(count).unwrap_or_default())
        .map(|index| {
            // SAFETY: one of the `count` strings, by this function's contract.
            let argument = unsafe { CStr::from_ptr(*arguments.add(index)) };
            OsStr::from_bytes(argument.to_bytes()).to_owned()
        })
        .collect()
}
