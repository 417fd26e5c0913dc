//! Writes the man page and the shell completions: `loopfs-gen DIR`, where DIR is `man` for those that
//! are checked in. Run it after a change of the command line, the mount options or the exit codes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use loopfs::cli::generate::generated;

fn main() -> ExitCode {
    let args: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [directory] = args.as_slice() else {
        eprintln!("usage: loopfs-gen DIR");
        return ExitCode::FAILURE;
    };
    match write_below(directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loopfs-gen: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_below(directory: &Path) -> io::Result<()> {
    for file in generated() {
        let path = directory.join(file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, file.content)?;
        println!("{}", path.display());
    }
    Ok(())
}
