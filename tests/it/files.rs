//! Files: what comes in is what goes out, to whoever may have it, and never as something that a browser runs.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::dev::text;
use crate::harness::{Answer, Dev};

struct Desk {
    dev: Dev,
    bearer: String,
}

impl Desk {
    async fn new() -> Self {
        let dev = Dev::start().await;
        let bearer = format!("Bearer {}", dev.login("paris").await);
        Self { dev, bearer }
    }

    async fn send(&self, method: &str, path: &str) -> Answer {
        let headers = [("Authorization", self.bearer.as_str())];
        self.dev.client.send(method, &self.dev.host("paris"), path, &headers, None).await
    }

    async fn bring(&self, query: &str, more: &[(&str, &str)], bytes: &str) -> Answer {
        let mut headers =
            vec![("Authorization", self.bearer.as_str()), ("Content-Type", "application/octet-stream")];
        headers.extend(more);
        let path = format!("/api/v1/files?{query}");
        self.dev.client.send("POST", &self.dev.host("paris"), &path, &headers, Some(bytes)).await
    }

    /// Objects in the store.
    fn objects(&self) -> usize {
        fn walk(folder: &std::path::Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|e| if e.path().is_dir() { walk(&e.path()) } else { 1 }).sum()
        }
        walk(&self.dev.folder().join("data/files"))
    }

    async fn rows(&self, state: &str) -> String {
        let sql = format!("select count(*) from files where state = '{state}'");
        self.dev.value("gmah_org_paris", &sql).await
    }
}

fn seen(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_a16_what_comes_in_goes_out() {
    let d = Desk::new().await;
    let about = uuid::Uuid::new_v4();
    // As many bytes as no piece has.
    let big = "<html><script>alert(1)</script>".to_owned() + &"0123456789abcdef".repeat(200_000);
    let made = d.bring(&format!("name=Re%C3%A7u%20%22x%22.html&attached_to={about}"), &[], &big).await;
    assert_eq!(made.status, 201, "{made:?}");
    let file = made.json();
    assert_eq!((text(&file["name"]), text(&file["media_type"])), ("Reçu \"x\".html", "text/plain"));
    assert_eq!(file["size"].as_u64(), Some(big.len() as u64));
    let path = format!("/api/v1/files/{}", text(&file["id"]));
    assert_eq!(d.send("GET", &path).await.json(), file);
    let content = d.send("GET", &format!("{path}/content")).await;
    assert_eq!((content.status, content.body.len()), (200, big.len()));
    assert!(content.body == big);
    let disposition = content.header("content-disposition").expect("disposition");
    assert_eq!(disposition, "attachment; filename*=UTF-8''Re%C3%A7u%20%22x%22.html");
    assert_eq!(content.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(content.header("content-type"), Some("text/plain"));
    assert!(content.header("content-security-policy").is_some_and(|p| p.starts_with("sandbox")));
    for (query, expected) in [(about.to_string(), 1), (uuid::Uuid::new_v4().to_string(), 0)] {
        let list = d.send("GET", &format!("/api/v1/files?attached_to={query}")).await.json();
        assert_eq!(list["items"].as_array().map(Vec::len), Some(expected));
    }
    // Under the organisation's id, and nowhere else.
    let id = d
        .dev
        .value("gmah_master", "select replace(id::text, '-', '') from organizations where slug = 'paris'")
        .await;
    assert!(d.dev.folder().join("data/files").join(&id).is_dir());
    // Another organisation has no such file.
    let lyon = d.dev.login("lyon").await;
    for path in [path.clone(), format!("{path}/content")] {
        assert_eq!(d.dev.get_as("lyon", &path, &lyon).await.status, 404);
    }
    assert_eq!(d.send("DELETE", &path).await.status, 204);
    assert_eq!(d.send("DELETE", &path).await.status, 404);
    assert_eq!(d.send("GET", &format!("{path}/content")).await.status, 404);
    assert_eq!((d.objects(), d.rows("deleted").await.as_str()), (0, "0"));
    let actions = d
        .dev
        .value(
            "gmah_org_paris",
            "select string_agg(action, ',' order by id) from audit_log where action like 'files.%'",
        )
        .await;
    assert_eq!(actions, "files.create,files.read,files.delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_what_is_refused_leaves_nothing() {
    let d = Desk::new().await;
    for query in [
        "name=",
        "name=a%2Fb",
        "name=..",
        "name=a%5Cb",
        "name=a%00b",
        "",
        "name=a&bogus=1",
        "name=a&attached_to=x",
    ] {
        let refused = d.bring(query, &[], "bytes").await;
        assert!([400, 422].contains(&refused.status), "{query}: {refused:?}");
    }
    let json = d
        .dev
        .client
        .send(
            "POST",
            &d.dev.host("paris"),
            "/api/v1/files?name=a",
            &[("Authorization", &d.bearer)],
            Some("{}"),
        )
        .await;
    assert_eq!(seen(&json), (415, "unsupported_media_type".into()));
    // One that says it is too large is refused before it comes; one that does not say, when it is.
    let head = |length: &str| {
        format!(
            "POST /api/v1/files?name=a HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: application/octet-stream\r\n\
             {length}\r\nConnection: close\r\n\r\n",
            d.dev.host("paris"),
            d.bearer
        )
    };
    let early = d.dev.client.raw(&d.dev.host("paris"), head("Content-Length: 30000000").as_bytes()).await;
    assert_eq!(crate::harness::http::status(&early), Some(413), "{}", String::from_utf8_lossy(&early));
    // One that says nothing of its length ends where the plan does.
    d.dev.cli_json(&["tenant", "set", "paris", "limits.storage_bytes=1000"]).await;
    let limit = || async { d.send("GET", "/api/v1/tenant").await.json()["limits"]["storage_bytes"].as_i64() };
    crate::harness::eventually("the limit", std::time::Duration::from_secs(5), limit, |n| *n == Some(1000))
        .await;
    let chunk = |n: usize| format!("{n:x}\r\n{}\r\n", "x".repeat(n));
    let chunked = head("Transfer-Encoding: chunked") + &chunk(900) + &chunk(900) + "0\r\n\r\n";
    let late = d.dev.client.raw(&d.dev.host("paris"), chunked.as_bytes()).await;
    let late = String::from_utf8_lossy(&late).into_owned();
    assert!(late.starts_with("HTTP/1.1 409") && late.contains("storage_bytes"), "{late}");
    d.dev.cli_json(&["tenant", "set", "paris", "limits.storage_bytes=default"]).await;
    crate::harness::eventually("no limit", std::time::Duration::from_secs(5), limit, |n| *n != Some(1000))
        .await;
    let chunked = head("Transfer-Encoding: chunked") + &chunk(900) + &chunk(900) + "0\r\n\r\n";
    let made = d.dev.client.raw(&d.dev.host("paris"), chunked.as_bytes()).await;
    assert_eq!(crate::harness::http::status(&made), Some(201));
    let list = d.send("GET", "/api/v1/files").await.json();
    assert_eq!(list["items"][0]["size"], 1800);
    let path = format!("/api/v1/files/{}", text(&list["items"][0]["id"]));
    assert_eq!(d.send("DELETE", &path).await.status, 204);
    // The client goes away in the middle.
    let mut stream = d.dev.client.connect(&d.dev.host("paris")).await;
    stream.write_all(head("Content-Length: 1000000").as_bytes()).await.expect("sent");
    stream.write_all(&[b'x'; 1000]).await.expect("sent");
    drop(stream);
    // Twice with one key it is one file, and the second's bytes are gone; other bytes are another request.
    let key = [("Idempotency-Key", "file-1")];
    let first = d.bring("name=a.txt", &key, "hello").await;
    let second = d.bring("name=a.txt", &key, "hello").await;
    assert_eq!((first.status, first.json()), (201, second.json()));
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(d.bring("name=a.txt", &key, "other").await.code(), "idempotency_key_reused");
    let one = || async { (d.objects(), d.rows("stored").await) };
    crate::harness::eventually("one file", std::time::Duration::from_secs(10), one, |n| {
        *n == (1, "1".into())
    })
    .await;
    // What nobody finished is cleared away in time.
    d.dev
        .execute("gmah_org_paris", "insert into files (id, name, media_type, size, created_by, state, created_at) select gen_random_uuid(), 'x', 'x', 5, id, 'uploading', now() - interval '2 hours' from users limit 1")
        .await;
    d.dev.execute("gmah_master", "update organization_chores set due_at = now()").await;
    let none = || d.rows("uploading");
    crate::harness::eventually("cleared", std::time::Duration::from_secs(40), none, |n| n == "0").await;
}

/// So many at once of one organisation, and no other waits for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_slow_uploads_is_one_organisations() {
    let d = Desk::new().await;
    let head = format!(
        "POST /api/v1/files?name=slow HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: 1000\r\n\r\nbegun",
        d.dev.host("paris"),
        d.bearer
    );
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut stream = d.dev.client.connect(&d.dev.host("paris")).await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    let all = || d.rows("uploading");
    crate::harness::eventually("they wait", std::time::Duration::from_secs(10), all, |n| n == "16").await;
    assert_eq!(seen(&d.bring("name=more", &[], "bytes").await), (503, "unavailable".into()));
    let lyon = format!("Bearer {}", d.dev.login("lyon").await);
    let headers = [("Authorization", lyon.as_str()), ("Content-Type", "application/octet-stream")];
    let other =
        d.dev.client.send("POST", &d.dev.host("lyon"), "/api/v1/files?name=a", &headers, Some("b")).await;
    assert_eq!(other.status, 201, "{other:?}");
    // None of them holds a connection to the database, and their places are free when they have gone.
    assert_eq!(d.send("GET", "/api/v1/members").await.status, 200);
    drop(slow);
    let again = || async { d.bring("name=again", &[], "bytes").await.status };
    crate::harness::eventually("free again", std::time::Duration::from_secs(10), again, |s| *s == 201).await;
}

/// C-08 for bytes: the plan's number holds, also for uploads that do not say how long they are.
#[tokio::test(flavor = "multi_thread")]
async fn the_plans_number_of_bytes() {
    let d = std::sync::Arc::new(Desk::new().await);
    d.dev.cli_json(&["tenant", "set", "paris", "limits.storage_bytes=1000"]).await;
    let limits: Value = d.send("GET", "/api/v1/tenant").await.json();
    assert_eq!(limits["limits"]["storage_bytes"], json!(1000));
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let d = d.clone();
            gmah_shared::tasks::detach("bring", async move {
                d.bring(&format!("name=f{n}"), &[], &"x".repeat(300)).await
            })
        })
        .collect();
    let mut made = Vec::new();
    for task in tasks {
        let answer = task.await.expect("joined");
        match answer.status {
            201 => made.push(text(&answer.json()["id"]).to_owned()),
            _ => assert_eq!(
                (seen(&answer), text(&answer.json()["limit"])),
                ((409, "plan_limit_reached".into()), "storage_bytes")
            ),
        }
    }
    assert_eq!(made.len(), 3);
    assert_eq!(d.send("DELETE", &format!("/api/v1/files/{}", made[0])).await.status, 204);
    assert_eq!(d.bring("name=again", &[], &"x".repeat(400)).await.status, 201);
    assert_eq!(d.objects(), 3);
    // Asked for again, what there is no more room for is what it was.
    assert_eq!(d.send("DELETE", &format!("/api/v1/files/{}", made[1])).await.status, 204);
    let key = [("Idempotency-Key", "fits-once")];
    for replayed in [None, Some("true")] {
        let kept = d.bring("name=once", &key, &"y".repeat(290)).await;
        assert_eq!((kept.status, kept.header("idempotency-replayed")), (201, replayed), "{kept:?}");
    }
    assert_eq!(d.objects(), 3);
}
