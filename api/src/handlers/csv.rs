//! Files of rows (RFC 4180): read whole and checked line by line before anything is done, and written piece by piece as
//! they are fetched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::stream;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::auth::Session;
use crate::context::TenantContext;
use crate::db::{DbError, TenantDb};
use crate::error::{ApiError, LineError};
use crate::repo::audit::{self, By};
use crate::routes::Parameter;

/// Most lines of a file.
const MOST_ROWS: usize = 10_000;
/// Most faults that are told of at once.
const MOST_ERRORS: usize = 200;
/// Rows that are fetched at once: of the longest, a few megabytes.
const PIECE: i64 = 200;
/// For all of a file that goes out.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Media type of such files.
pub const MEDIA_TYPE: &str = "text/csv";

/// Query of an import.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// What may be said of an import.
pub const QUERY: &[Parameter] = &[Parameter {
    name: "dry_run",
    about: "Says what would come of it, and does nothing.",
    schema: r#"{"type": "boolean", "default": false}"#,
    is_required: false,
}];

/// Response of an import.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportReport {
    /// Lines beside that of the names.
    pub rows: usize,
    /// How many became something; none in a dry run.
    pub created: u64,
    /// Whether it was a dry run.
    pub dry_run: bool,
    /// What is wrong, line by line; in a dry run only, because nothing is done otherwise.
    pub errors: Vec<LineError>,
}

/// A body of `text/csv`.
pub struct CsvBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for CsvBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let is_csv = request.headers().get(CONTENT_TYPE).is_some_and(|v| {
            let essence = v.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(MEDIA_TYPE.as_bytes())
        });
        if !is_csv {
            return Err(ApiError::UnsupportedMediaType);
        }
        super::body::bytes(request, state).await.map(Self)
    }
}

/// A line of a file.
pub struct Row {
    /// Number, from 1.
    pub line: u64,
    cells: Vec<String>,
    columns: &'static [&'static str],
}

impl Row {
    /// The cell of a column; nothing where it is empty.
    pub fn cell(&self, column: &str) -> Option<String> {
        let at = self.columns.iter().position(|c| *c == column)?;
        self.cells.get(at).filter(|text| !text.is_empty()).cloned()
    }

    /// What `parse` makes of the line; a refusal becomes that of the line.
    pub fn checked<T>(&self, parse: impl FnOnce(&Self) -> Result<T, ApiError>) -> Result<T, LineError> {
        parse(self).map_err(|e| match e {
            ApiError::Invalid { field, message } => LineError { line: self.line, field, message },
            other => LineError { line: self.line, field: String::new(), message: other.parts().2.to_owned() },
        })
    }
}

/// The lines of a file whose first line names `columns`, all of them or those that are not `required`.
///
/// # Errors
/// 400 for what is no such file, 422 for names that are not these, and for more than ten thousand lines.
pub fn read(raw: &[u8], columns: &'static [&'static str], required: &[&str]) -> Result<Vec<Row>, ApiError> {
    let raw = raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw);
    let bad = |why: String| ApiError::Malformed(format!("the file cannot be read: {why}"));
    if let Err(e) = std::str::from_utf8(raw) {
        return Err(bad(format!("line {} is not UTF-8", 1 + newlines(&raw[..e.valid_up_to()]))));
    }
    // Lengths are compared here: the reader's own numbers of lines are one too small where these end with both characters.
    let mut reader = csv::ReaderBuilder::new().has_headers(true).flexible(true).from_reader(raw);
    let none = |_| bad("it is no CSV".into());
    let names: Vec<String> = reader.headers().map_err(none)?.iter().map(|n| n.trim().to_owned()).collect();
    if let Some(unknown) = names.iter().find(|n| !columns.contains(&n.as_str())) {
        let unknown: String = unknown.chars().filter(|c| !c.is_control()).take(50).collect();
        return Err(ApiError::invalid("columns", &format!("{unknown:?} is none of {}", columns.join(", "))));
    }
    if let Some(name) = names.iter().enumerate().find(|(n, name)| names[..*n].contains(name)) {
        return Err(ApiError::invalid("columns", &format!("{} is there twice", name.1)));
    }
    if let Some(missing) = required.iter().find(|r| !names.iter().any(|n| n == *r)) {
        return Err(ApiError::invalid("columns", &format!("{missing} is missing")));
    }
    let at: Vec<Option<usize>> = columns.iter().map(|c| names.iter().position(|n| n == c)).collect();
    let (mut rows, mut counted, mut line) = (Vec::new(), 0, 1);
    for record in reader.records() {
        let record = record.map_err(none)?;
        if rows.len() == MOST_ROWS {
            return Err(ApiError::invalid("rows", "must be at most 10000"));
        }
        let begins = record.position().map_or(0, |p| usize::try_from(p.byte()).unwrap_or(usize::MAX));
        let blank = raw.iter().skip(begins).take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let begins = begins.saturating_add(blank).min(raw.len());
        line += newlines(&raw[counted..begins]);
        counted = begins;
        if record.len() != names.len() {
            let (len, wanted) = (record.len(), names.len());
            return Err(bad(format!("line {line} has {len} cells in place of {wanted}")));
        }
        let cell = |at: &Option<usize>| at.and_then(|n| record.get(n)).map(unguarded).unwrap_or_default();
        rows.push(Row { line, cells: at.iter().map(cell).collect(), columns });
    }
    Ok(rows)
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|b| **b == b'\n').count() as u64
}

/// What `parse` makes of every line, and what is wrong with some.
pub fn parse<T>(rows: &[Row], parse: impl Fn(&Row) -> Result<T, ApiError>) -> (Vec<T>, Vec<LineError>) {
    let (mut good, mut errors) = (Vec::new(), Vec::new());
    for row in rows {
        match row.checked(&parse) {
            Ok(value) => good.push(value),
            Err(_) if errors.len() >= MOST_ERRORS => break,
            Err(error) => errors.push(error),
        }
    }
    (good, errors)
}

/// What a table is made of, piece by piece.
pub trait Exported: Sized + Send + 'static {
    /// Names of its columns.
    const COLUMNS: &'static [&'static str];
    /// Name of the file.
    const FILE: &'static str;

    /// Up to `limit` of them after an id.
    fn fetch(
        db: &mut TenantDb,
        after: Option<Uuid>,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Self>, DbError>> + Send;

    /// Its id.
    fn id(&self) -> Uuid;

    /// Its cells.
    ///
    /// # Errors
    /// Where a sealed value does not open.
    fn cells(&self, ctx: &TenantContext) -> Result<Vec<String>, ApiError>;
}

/// All of a table as a file. Who asked is written down first; then it is fetched as fast as it is read, with a connection
/// for each piece, so that a slow reader holds none.
pub async fn export<T: Exported>(mut session: Session, action: &'static str) -> Result<Response, ApiError> {
    let (by, none) = (By::of(&session), serde_json::Value::Null);
    // Until the last piece has gone: one organisation's slow readers are not all that a node does.
    let place = session.ctx.app().exports.enter(session.ctx.detail().tenant.id);
    let place = Arc::new(place.ok_or(ApiError::Unavailable)?);
    let mut tx = session.db.transaction().await?;
    audit::insert(&mut tx, &by, action, None, &none, &none).await?;
    tx.commit().await?;
    audit::log(&session.ctx, &by, action, None);
    session.db.give_back();
    let ctx = session.ctx.clone();
    let (place, deadline) = (place, Instant::now() + PATIENCE);
    let pieces = stream::try_unfold(Some((ctx, None, true)), move |state| {
        let place = place.clone();
        async move {
            let _held = place;
            let Some((ctx, after, is_first)) = state else { return Ok(None) };
            // The answer has begun: cut short, it is known to be incomplete.
            if Instant::now() > deadline {
                return Err(std::io::Error::other("too_slow"));
            }
            piece::<T>(ctx, after, is_first).await.map_err(|e| std::io::Error::other(e.parts().1))
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
    let disposition = format!("attachment; filename=\"{}\"", T::FILE);
    headers.extend(HeaderValue::try_from(disposition).ok().map(|v| (CONTENT_DISPOSITION, v)));
    Ok(response)
}

type State = Option<(TenantContext, Option<Uuid>, bool)>;

async fn piece<T: Exported>(
    ctx: TenantContext,
    after: Option<Uuid>,
    is_first: bool,
) -> Result<Option<(Bytes, State)>, ApiError> {
    let found = {
        let mut db = TenantDb::open_to_read(&ctx).await?;
        T::fetch(&mut db, after, PIECE).await?
    };
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let failed = |_| ApiError::Internal;
    if is_first {
        writer.write_record(T::COLUMNS).map_err(failed)?;
    }
    for item in &found {
        writer.write_record(item.cells(&ctx)?.iter().map(|c| guarded(c))).map_err(failed)?;
    }
    let bytes = Bytes::from(writer.into_inner().map_err(|_| ApiError::Internal)?);
    let last = found.last().map(T::id);
    let is_last = (found.len() as i64) < PIECE;
    Ok(Some((bytes, (!is_last).then_some((ctx, last, false)))))
}

/// Programs for tables take such cells for something to compute.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

fn guarded(cell: &str) -> String {
    if cell.starts_with(FORMULA) { format!("'{cell}") } else { cell.to_owned() }
}

/// What was guarded when it was written.
fn unguarded(cell: &str) -> String {
    let cell = cell.trim();
    cell.strip_prefix('\'').filter(|rest| rest.starts_with(FORMULA)).unwrap_or(cell).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[&str] = &["name", "phone"];

    type Read = Vec<(u64, Option<String>, Option<String>)>;

    fn read(text: &[u8]) -> Result<Read, ApiError> {
        let rows = super::read(text, COLUMNS, &["name"])?;
        Ok(rows.iter().map(|r| (r.line, r.cell("name"), r.cell("phone"))).collect())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn lines_and_cells() {
        let text = b"\xef\xbb\xbfphone,name\r\n'+331,\"Ada, Countess\"\r\n,\"two\nlines\"\r\n\r\n1,Eva\r\n";
        assert_eq!(
            read(text).expect("read"),
            [
                (2, some("+331"), some("Ada, Countess")),
                (3, None, some("two\nlines")),
                (6, some("1"), some("Eva"))
            ]
            .map(|(l, p, n)| (l, n, p))
        );
        assert_eq!(read(b"name\nAda\n").expect("read"), [(2, some("Ada"), None)]);
        assert!(read(b"name\n").expect("read").is_empty());
    }

    #[test]
    fn what_is_no_such_file_is_named() {
        for (text, expected) in [
            (&b"name,bogus\n"[..], "bogus"),
            (b"phone\n1\n", "name is missing"),
            (b"name,name\n", "twice"),
            (b"", "name is missing"),
        ] {
            let refused = read(text).expect_err(expected);
            assert!(
                matches!(&refused, ApiError::Invalid { message, .. } if message.contains(expected)),
                "{refused:?}"
            );
        }
        for (text, expected) in [
            (&b"name,phone\nAda\n"[..], "line 2 has 1"),
            (b"name,phone\r\nAda,1\r\n\r\nEva\r\n", "line 4 has 1"),
            (b"name\n\xff\n", "line 2 is not UTF-8"),
        ] {
            let refused = read(text).expect_err(expected);
            assert!(matches!(&refused, ApiError::Malformed(m) if m.contains(expected)), "{refused:?}");
        }
        // No more than so many faults are told of at once.
        let bad = "name\n".to_owned() + &"x\n".repeat(MOST_ERRORS + 50);
        let rows = super::read(bad.as_bytes(), COLUMNS, &["name"]).expect("read");
        let (good, errors) = parse(&rows, |_| Err::<(), _>(ApiError::invalid("name", "must not be x")));
        assert_eq!((good.len(), errors.len(), errors[0].line), (0, MOST_ERRORS, 2));
        let many = "name\n".to_owned() + &"x\n".repeat(MOST_ROWS + 1);
        assert!(read(many.as_bytes()).is_err());
    }

    #[test]
    fn nothing_is_computed_by_whoever_opens_it() {
        for cell in ["=1+1", "+33 1", "-1", "@x", "\t=1"] {
            assert!(guarded(cell).starts_with('\''), "{cell}");
            assert_eq!(unguarded(&guarded(cell)), cell.trim_end(), "{cell:?}");
        }
        assert_eq!(guarded("O'Brien"), "O'Brien");
        assert_eq!(unguarded("'tis"), "'tis");
    }
}
