//! Writes the man page and the shell completions: `loopfs-gen DIR`, where DIR is `man` for those that
//! are checked in. Run it after a change of the command line, the mount options or the exit codes.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, bail};
use loopfs::cli::generate::generated;

fn main() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [directory] = args.as_slice() else {
        bail!("usage: loopfs-gen DIR");
    };
    for file in generated() {
        let path = directory.join(file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("can't make {}", parent.display()))?;
        }
        fs::write(&path, file.content)
            .with_context(|| format!("can't write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
