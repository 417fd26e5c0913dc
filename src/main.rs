//! `loopfs SRC MNT`: reads the command line, starts logging, runs, and turns the result into an exit
//! code. Whatever fails is told here, once, in one line on stderr.

use std::process;

use loopfs::cli::{Cli, Environment};
use loopfs::exit::{ExitCode, Failure};
use loopfs::{daemon, logging, mount};

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
    let fake = cli.is_fake();
    let config = cli.resolve(&Environment::current())?;
    if fake {
        return Ok(ExitCode::Success);
    }
    daemon::run(&config, mount::serve)
}
