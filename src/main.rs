//! `loopfs SRC MNT`: reads the command line, starts logging, runs, and turns the result into an exit
//! code. Whatever fails is told here, once, in one line on stderr.

use std::process;

use loopfs::cli::{Cli, Environment};
use loopfs::config::Task;
use loopfs::exit::{ExitCode, Failure};
use loopfs::{attach, daemon, logging, mount};

fn main() -> process::ExitCode {
    run()
        .unwrap_or_else(|failure| {
            logging::report(&failure);
            failure.code
        })
        .into()
}

fn run() -> Result<ExitCode, Failure> {
    let Some(cli) = Cli::parse_from_args(std::env::args_os())? else {
        return Ok(ExitCode::Success);
    };
    logging::init(&cli.logging());
    cli.enter_namespace()?;
    let config = cli.resolve(&Environment::current())?;
    match config.task {
        Task::Serve => daemon::run(&config, mount::serve),
        Task::Remount => attach::remount(&config)
            .map(|()| ExitCode::Success)
            .map_err(Failure::from),
        Task::Check => Ok(ExitCode::Success),
    }
}
