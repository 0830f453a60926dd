//! The program: its allocator, and the library's [`main`](kube_ipvs::main).

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kube_ipvs::main()
}
