//! One attempt: a process in which a fault leaves its input behind.

use std::sync::OnceLock;

const STACK: usize = 256 * 1024;

/// An overflow of the stack leaves its input behind, too: the handler that libFuzzer installs runs on a stack of its own.
/// To be called before that, which is what `init` of `fuzz_target!` is for.
#[expect(unsafe_code, reason = "signals and their stacks are system calls")]
pub fn prepare() {
    static ALTERNATE: OnceLock<&'static mut [u8]> = OnceLock::new();
    let stack = ALTERNATE.get_or_init(|| Box::leak(vec![0; STACK].into_boxed_slice()));
    let alternate = libc::stack_t {
        ss_sp: stack.as_ptr().cast_mut().cast(),
        ss_flags: 0,
        ss_size: STACK,
    };
    // SAFETY: the memory is never freed and used by nothing else. libFuzzer keeps the flag SA_ONSTACK that it finds
    // (FuzzerUtilPosix.cpp, `SetSigaction`), and the action is otherwise the default one.
    unsafe {
        libc::sigaltstack(&raw const alternate, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
    }
}
