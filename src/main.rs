//! `loopfs SRC MNT`, and the commands that look at mounts: reads the command line, starts logging, runs, and turns
//! the result into an exit code. Whatever fails is told here, once, in one line on stderr.

use std::process;

use loopfs::cli::{Asked, Cli, Environment};
use loopfs::config::{Supervise, Task};
use loopfs::exit::{ExitCode, Failure};
use loopfs::supervise::{Succession, Supervisor};
use loopfs::{attach, daemon, guard, logging, look, mount, supervise};

#[global_allocator]
static ALLOCATOR: loopfs::sys::buffers::Allocator = loopfs::sys::buffers::Allocator;

fn main() -> process::ExitCode {
    run()
        .unwrap_or_else(|failure| {
            logging::report(&failure);
            failure.code
        })
        .into()
}

fn run() -> Result<ExitCode, Failure> {
    let arguments: Vec<_> = std::env::args_os().collect();
    if guard::is_this_process(&arguments) {
        return Ok(guard::run());
    }
    let cli = match Cli::parse_from_args(arguments)? {
        None => return Ok(ExitCode::Success),
        Some(Asked::Command(command)) => return look::run(&command),
        Some(Asked::Mount(cli)) => cli,
    };
    logging::init(&cli.logging());
    if let Some(supervisor) = Supervisor::of_this_process()? {
        // The supervisor tells what went wrong, and ends with the same status.
        let result = mount::serve_under(*cli, &supervisor);
        return Ok(result.unwrap_or_else(|failure| failure.code));
    }
    let succession = match Succession::of_this_process()? {
        None => supervise::kept_by_systemd(),
        succession => succession,
    };
    if let Some(succession) = succession {
        // SRC and MNT were found before there was the mount, and whoever waited for it was told then.
        let config = cli.resolve_again(&Environment::current(), succession.paths())?;
        return supervise::go_on(&config, succession);
    }
    cli.enter_namespace()?;
    let config = cli.resolve(&Environment::current())?;
    if config.task == Task::Serve {
        mount::check_limits()?;
    }
    match config.task {
        Task::Serve if config.restart.supervise != Supervise::Off => {
            daemon::run(&config, supervise::run)
        }
        Task::Serve => daemon::run(&config, mount::serve),
        Task::Remount => attach::remount(&config)
            .map(|()| ExitCode::Success)
            .map_err(Failure::from),
        Task::Check => Ok(ExitCode::Success),
    }
}
