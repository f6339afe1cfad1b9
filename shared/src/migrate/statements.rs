//! Where the statements of a file begin: for saying which of them failed.
//!
//! Knows what may hold a semicolon that ends nothing (PostgreSQL, chapter 4.1): quoted names and strings, dollar quotes,
//! comments, which nest.

/// Each statement with the number of its first line, counted from 1.
pub(super) fn of(sql: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < sql.len() {
        let rest = &sql[at..];
        if rest.starts_with(';') {
            push(&mut found, sql, start, at);
            start = at + 1;
        }
        at += token(rest).max(1);
    }
    push(&mut found, sql, start, sql.len());
    found
}

fn push<'a>(found: &mut Vec<(usize, &'a str)>, sql: &'a str, start: usize, end: usize) {
    let mut text = &sql[start..end];
    let mut from = start;
    // What stands before it is not it.
    loop {
        let trimmed = text.trim_start();
        from += text.len() - trimmed.len();
        let skipped = if trimmed.starts_with("--") || trimmed.starts_with("/*") { token(trimmed) } else { 0 };
        text = &trimmed[skipped..];
        from += skipped;
        if skipped == 0 {
            break;
        }
    }
    if !text.trim_end().is_empty() {
        found.push((sql[..from].matches('\n').count() + 1, text.trim_end()));
    }
}

/// Bytes of the token that `rest` begins with, where it is one that may hold a semicolon; else of one character.
fn token(rest: &str) -> usize {
    let until = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |n| from + n + end.len());
    if rest.starts_with("--") {
        return until(2, "\n");
    }
    if rest.starts_with("/*") {
        return comment(rest);
    }
    match rest.as_bytes().first() {
        Some(b'\'') => until(1, "'"),
        Some(b'"') => until(1, "\""),
        Some(b'$') => match rest[1..].find('$') {
            Some(n) if rest[1..=n].chars().all(|c| c.is_alphanumeric() || c == '_') => {
                let tag = &rest[..n + 2];
                until(tag.len(), tag)
            }
            _ => 1,
        },
        _ => rest.chars().next().map_or(1, char::len_utf8),
    }
}

fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_and_their_lines() {
        let sql = "-- first; not a statement\ncreate table a (x text default ';');\n\n/* two /* nested; */ ; */\n\
                   do $$ begin perform 1; end $$;\nselect \"odd;name\", $t$ ; $$ ; $t$ from é;\n  ;\nselect 1 -- end;\n";
        let found: Vec<_> =
            of(sql).into_iter().map(|(line, text)| (line, text.get(..12).unwrap_or(text))).collect();
        assert_eq!(
            found,
            [(2, "create table"), (5, "do $$ begin "), (6, "select \"odd;"), (8, "select 1 -- ")]
        );
        for odd in ["", ";", ";;", "'", "$", "$x", "$x$", "/*", "--", "é", "/* é", "$é$ ; $é$"] {
            assert!(of(odd).len() <= 1, "{odd}");
        }
    }

    #[test]
    fn our_own_files_end_where_they_end() {
        for file in super::super::MASTER.files {
            let last = of(file.sql).last().map(|(_, text)| text.len());
            assert!(last.is_some(), "{}", file.name);
        }
    }
}
