//! PostgreSQL's own programs on this machine.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian keeps them, by version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The folder that holds those programs: one of `PATH`, or the newest of Debian's. What Debian puts on the `PATH` is a script in
/// Perl that looks for the newest each time, and takes longer for that than some of them for their work.
pub fn folder(names: &[&str]) -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH");
    let on_path = on_path.iter().flat_map(std::env::split_paths);
    find(on_path.collect(), Path::new(DEBIAN), names)
}

fn find(on_path: Vec<PathBuf>, versions: &Path, names: &[&str]) -> Option<PathBuf> {
    let has_all = |folder: &PathBuf| names.iter().all(|name| folder.join(name).exists());
    let finds_others = |folder: &PathBuf| {
        names
            .iter()
            .any(|name| fs::canonicalize(folder.join(name)).is_ok_and(|to| to.ends_with("pg_wrapper")))
    };
    let mut on_path = on_path.into_iter().filter(has_all);
    let newest = || {
        let versions = fs::read_dir(versions).ok()?.flatten();
        versions
            .filter_map(|v| Some((v.file_name().to_str()?.parse::<u32>().ok()?, v.path().join("bin"))))
            .filter(|(_, bin)| has_all(bin))
            .max_by_key(|(version, _)| *version)
            .map(|(_, bin)| bin)
    };
    match on_path.next() {
        Some(script) if finds_others(&script) => newest().or(Some(script)),
        Some(programs) => Some(programs),
        None => newest(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_would_find_is_taken_for_it() {
        let root = tempfile::tempdir().expect("folder");
        let at = |path: &str| root.path().join(path);
        let put = |path: &str| {
            fs::create_dir_all(at(path).parent().expect("a folder")).expect("made");
            fs::write(at(path), "").expect("written");
        };
        let versions = at("versions");
        let names = ["pg_dump", "pg_restore"];
        let found = |path: &[&str]| find(path.iter().map(|p| at(p)).collect(), &versions, &names);
        assert_eq!(found(&["bin"]), None);
        put("share/pg_wrapper");
        fs::create_dir(at("bin")).expect("made");
        for name in names {
            std::os::unix::fs::symlink(at("share/pg_wrapper"), at("bin").join(name)).expect("linked");
        }
        assert_eq!(found(&["none", "bin"]), Some(at("bin")));
        put("versions/9/bin/pg_dump");
        put("versions/9/bin/pg_restore");
        put("versions/15/bin/pg_dump");
        put("versions/15/bin/pg_restore");
        put("versions/17/bin/pg_dump");
        assert_eq!(found(&["bin"]), Some(at("versions/15/bin")), "the newest that has both");
        put("own/pg_dump");
        assert_eq!(found(&["bin", "own"]), Some(at("versions/15/bin")), "one is not both");
        put("own/pg_restore");
        assert_eq!(found(&["bin", "own"]), Some(at("versions/15/bin")), "as the script would");
        assert_eq!(found(&["own", "bin"]), Some(at("own")));
    }
}
