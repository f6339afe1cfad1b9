//! PostgreSQL's own programs on this machine.

use std::fs;
use std::path::PathBuf;

/// The folder that holds those programs: one of `PATH`, or the newest of Debian's.
pub fn folder(names: &[&str]) -> Option<PathBuf> {
    let has_all = |folder: &PathBuf| names.iter().all(|name| folder.join(name).exists());
    let on_path = std::env::var_os("PATH").and_then(|path| std::env::split_paths(&path).find(|p| has_all(p)));
    on_path.or_else(|| {
        fs::read_dir("/usr/lib/postgresql").ok().and_then(|versions| {
            versions
                .flatten()
                .filter_map(|v| Some((v.file_name().to_str()?.parse::<u32>().ok()?, v.path().join("bin"))))
                .filter(|(_, bin)| has_all(bin))
                .max_by_key(|(version, _)| *version)
                .map(|(_, bin)| bin)
        })
    })
}
