//! `gmah`: the router, the api, the control plane and the development environment in one binary.

mod cli;
mod dev;

use std::process::ExitCode;

use clap::Parser as _;

/// A request at the edge allocates some eighty times, in all sizes up to its future's twenty kilobytes: the system's
/// allocator takes a sixth of the request for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // The allocator asks for them, and a router of a few megabytes takes fourteen with them. A kernel that has no such
    // thing has nothing to turn off.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: no runtime: {e}");
            return ExitCode::from(cli::FAILED);
        }
    };
    let code = match runtime.block_on(cli.run()) {
        Ok(code) => code,
        Err(e) => {
            cli::aside(format_args!("error: {e:#}"));
            cli::exit_code(&e)
        }
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
