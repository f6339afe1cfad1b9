//! A free-loan society beside its loans: members that change, families, files, and rules of its own.

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev};

struct Society {
    dev: Dev,
    bearer: String,
}

impl Society {
    async fn new() -> Self {
        let dev = Dev::start().await;
        let bearer = format!("Bearer {}", dev.login("paris").await);
        Self { dev, bearer }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.with(method, path, &[], body).await
    }

    async fn with(&self, method: &str, path: &str, more: &[(&str, &str)], body: Option<Value>) -> Answer {
        let mut headers = vec![("Authorization", self.bearer.as_str())];
        headers.extend(more);
        let body = body.map(|b| b.as_str().map_or_else(|| b.to_string(), str::to_owned));
        self.dev.client.send(method, &self.dev.host("paris"), path, &headers, body.as_deref()).await
    }

    async fn file(&self, path: &str, text: &str) -> Answer {
        self.with("POST", path, &[("Content-Type", "text/csv")], Some(text.into())).await
    }

    async fn member(&self, body: Value) -> String {
        let made = self.send("POST", "/api/v1/members", Some(body)).await;
        assert_eq!(made.status, 201, "{made:?}");
        text(&made.json()["id"]).to_owned()
    }

    async fn members(&self) -> i64 {
        self.dev.value("gmah_org_paris", "select count(*) from members").await.parse().expect("count")
    }
}

fn seen(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_change_the_same_member_do_not_undo_each_other() {
    let s = Society::new().await;
    let id =
        s.member(json!({"first_name": "Ada", "last_name": "Lovelace", "email": "ada@example.org"})).await;
    let path = format!("/api/v1/members/{id}");
    let shown = s.send("GET", &path, None).await;
    let tag = shown.header("etag").expect("a tag").to_owned();
    // What was not changed is not sent again.
    let same = s.with("GET", &path, &[("If-None-Match", &tag)], None).await;
    assert_eq!((same.status, same.body.as_str()), (304, ""));
    assert_eq!(s.with("GET", &path, &[("If-None-Match", "\"other\"")], None).await.status, 200);
    let first = s.with("PATCH", &path, &[("If-Match", &tag)], Some(json!({"phone": "+33 1 02 03 04"}))).await;
    assert_eq!((first.status, text(&first.json()["email"])), (200, "ada@example.org"), "{first:?}");
    let second = s.with("PATCH", &path, &[("If-Match", &tag)], Some(json!({"email": null}))).await;
    assert_eq!(seen(&second), is(412, "precondition_failed"));
    let tag = first.header("etag").expect("a tag").to_owned();
    let list = format!("\"x\", {tag}");
    let second = s.with("PATCH", &path, &[("If-Match", &list)], Some(json!({"email": null}))).await;
    assert_eq!((second.status, &second.json()["email"]), (200, &Value::Null));
    assert_eq!(s.with("PATCH", &path, &[("If-Match", "*")], Some(json!({}))).await.status, 200);
    for (bad, field) in [
        (json!({"first_name": ""}), "first_name"),
        (json!({"first_name": null}), "first_name"),
        (json!({"email": "nobody"}), "email"),
        (json!({"family_id": id}), "family_id"),
        (json!({"id": id}), "id"),
    ] {
        let refused = s.send("PATCH", &path, Some(bad.clone())).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, field), "{bad}");
    }
    let nobody = format!("/api/v1/members/{}", uuid::Uuid::new_v4());
    assert_eq!(s.send("PATCH", &nobody, Some(json!({}))).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn families_and_searches() {
    let s = Society::new().await;
    let family = s.send("POST", "/api/v1/families", Some(json!({"name": "Lovelace"}))).await;
    assert_eq!(family.status, 201, "{family:?}");
    let id = text(&family.json()["id"]).to_owned();
    let path = format!("/api/v1/families/{id}");
    let ada = s.member(json!({"first_name": "Ada", "last_name": "Love_lace", "family_id": id})).await;
    let found = s.send("GET", &format!("/api/v1/members?family_id={id}"), None).await.json();
    assert_eq!(
        (found["items"].as_array().map(Vec::len), text(&found["items"][0]["id"])),
        (Some(1), ada.as_str())
    );
    for (search, expected) in [("love_", 1), ("ADA%20LOVE", 1), ("love%25", 0), ("%5C", 0), ("nobody", 0)] {
        let found = s.send("GET", &format!("/api/v1/members?search={search}"), None).await;
        assert_eq!(found.json()["items"].as_array().map(Vec::len), Some(expected), "{search}: {found:?}");
    }
    assert_eq!(seen(&s.send("DELETE", &path, None).await), is(409, "family_in_use"));
    let tag = s.send("GET", &path, None).await.header("etag").expect("a tag").to_owned();
    let renamed = s.send("PATCH", &path, Some(json!({"name": "Byron"}))).await;
    assert_eq!(text(&renamed.json()["name"]), "Byron");
    let alone = Some(json!({"family_id": null}));
    assert_eq!(s.send("PATCH", &format!("/api/v1/members/{ada}"), alone).await.status, 200);
    // What somebody has renamed is not removed by who has not seen it; and a condition that a route does not look at is not met.
    let old = [("If-Match", tag.as_str())];
    assert_eq!(seen(&s.with("DELETE", &path, &old, None).await), is(412, "precondition_failed"));
    let body = Some(json!({"name": "Other"}));
    assert_eq!(seen(&s.with("POST", "/api/v1/families", &old, body).await), is(412, "precondition_failed"));
    let long = [("If-Match", &*"x".repeat(1025))];
    assert_eq!(s.with("DELETE", &path, &long, None).await.status, 400);
    assert_eq!(s.send("DELETE", &path, None).await.status, 204);
    assert_eq!(s.send("GET", &path, None).await.status, 404);
    assert_eq!(s.send("GET", "/api/v1/members?search=", None).await.status, 422);
    assert_eq!(s.send("GET", "/api/v1/members?family_id=x", None).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_members() {
    let s = Society::new().await;
    let before = s.members().await;
    let good = "last_name,first_name,phone\r\nLovelace,\"Ada, Countess\",'+33 1 02 03 04\r\nByron,Eva,\r\n";
    let dry = s.file("/api/v1/members/import?dry_run=true", good).await;
    assert_eq!(
        (dry.status, dry.json()),
        (200, json!({"rows": 2, "created": 0, "dry_run": true, "errors": []})),
        "{dry:?}"
    );
    let bad = "first_name,last_name,email\nAda,Lovelace,nobody\n,Byron,\nEva,Byron,eva@example.org\n";
    let dry = s.file("/api/v1/members/import?dry_run=true", bad).await.json();
    let lines: Vec<_> = dry["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|e| (e["line"].as_u64(), text(&e["field"]).to_owned()))
        .collect();
    assert_eq!(lines, [(Some(2), "email".to_owned()), (Some(3), "first_name".to_owned())]);
    let refused = s.file("/api/v1/members/import", bad).await;
    assert_eq!(seen(&refused), is(422, "import_invalid"));
    assert_eq!(refused.json()["errors"].as_array().map(Vec::len), Some(2));
    for (file, status) in [
        ("first_name\nAda\n", 422),
        ("first_name,last_name,bogus\n", 422),
        ("first_name,last_name\nAda\n", 400),
        ("", 422),
    ] {
        assert_eq!(s.file("/api/v1/members/import", file).await.status, status, "{file}");
    }
    let json = s.send("POST", "/api/v1/members/import", Some(json!({}))).await;
    assert_eq!(seen(&json), is(415, "unsupported_media_type"));
    assert_eq!(s.members().await, before, "nothing was done");
    // Twice with one key it happens once; a dry run with that key is another request.
    let once = [("Content-Type", "text/csv"), ("Idempotency-Key", "file-1")];
    for replayed in [None, Some("true")] {
        let done = s.with("POST", "/api/v1/members/import", &once, Some(good.into())).await;
        assert_eq!((done.status, done.json()["created"].as_u64()), (200, Some(2)), "{done:?}");
        assert_eq!(done.header("idempotency-replayed"), replayed);
    }
    assert_eq!(s.members().await, before + 2);
    // What goes out comes in again.
    let out = s.send("GET", "/api/v1/members/export", None).await;
    assert_eq!(out.header("content-disposition"), Some("attachment; filename=\"members.csv\""));
    assert!(out.header("content-type").is_some_and(|t| t.starts_with("text/csv")));
    assert!(out.body.contains("\"Ada, Countess\",Lovelace,,'+33 1 02 03 04\r\n"), "{}", out.body);
    assert_eq!(out.body.lines().count() as i64, before + 3);
    let again = s.file("/api/v1/members/import?dry_run=true", &out.body).await.json();
    assert_eq!((again["rows"].as_i64(), &again["errors"]), (Some(before + 2), &json!([])));
    // More than one piece, and who took it with them is written down.
    s.dev
        .execute(
            "gmah_org_paris",
            "insert into members (id, first_name, last_name) select gen_random_uuid(), 'Many', 'n' || n from generate_series(1, 1700) n",
        )
        .await;
    let out = s.send("GET", "/api/v1/members/export", None).await;
    assert_eq!(out.body.lines().count() as i64, before + 3 + 1700);
    let exports = "select count(*) from audit_log where action = 'members.export'";
    assert_eq!(s.dev.value("gmah_org_paris", exports).await, "2");
    // The plan's number goes for files as well.
    let many = "first_name,last_name\n".to_owned() + &"A,B\n".repeat(100);
    let refused = s.file("/api/v1/members/import", &many).await;
    assert_eq!(seen(&refused), is(409, "plan_limit_reached"), "{refused:?}");
    // And a dry run says so.
    let dry = s.file("/api/v1/members/import?dry_run=true", &many).await;
    assert_eq!(seen(&dry), is(409, "plan_limit_reached"), "{dry:?}");
    assert_eq!(s.members().await, before + 2 + 1700);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_its_own() {
    let s = Society::new().await;
    let path = "/api/v1/settings/loans";
    let default = s.send("GET", path, None).await;
    assert_eq!(
        default.json(),
        json!({"currency": null, "max_amount": null, "max_installments": 240, "min_guarantors": 0, "max_open_loans": null})
    );
    for (bad, field) in [
        (json!({"currency": "euro"}), "currency"),
        (json!({"max_amount": 0}), "max_amount"),
        (json!({"max_installments": 241}), "max_installments"),
        (json!({"min_guarantors": -1}), "min_guarantors"),
        (json!({"max_open_loans": 0}), "max_open_loans"),
        (json!({"bogus": 1}), "bogus"),
        (json!({"max_amount": "much"}), "max_amount"),
    ] {
        let refused = s.send("PUT", path, Some(bad.clone())).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, field), "{bad}");
    }
    let tag = default.header("etag").expect("a tag").to_owned();
    let rules = json!({"currency": "EUR", "max_amount": 1000, "max_installments": 12, "min_guarantors": 1, "max_open_loans": 1});
    assert_eq!(s.with("PUT", path, &[("If-Match", &tag)], Some(rules.clone())).await.status, 200);
    assert_eq!(s.with("PUT", path, &[("If-Match", &tag)], Some(json!({}))).await.status, 412);
    assert_eq!(s.send("GET", path, None).await.json(), rules);

    let ada = s.member(json!({"first_name": "Ada", "last_name": "Lovelace"})).await;
    let eva = s.member(json!({"first_name": "Eva", "last_name": "Byron"})).await;
    let loan = |change: Value| {
        let mut body = json!({"member_id": ada, "amount": 1000, "currency": "EUR", "installments": 10});
        for (key, value) in change.as_object().expect("object") {
            body[key] = value.clone();
        }
        s.send("POST", "/api/v1/loans", Some(body))
    };
    for (change, field) in [
        (json!({"amount": 1001}), "amount"),
        (json!({"currency": "USD"}), "currency"),
        (json!({"installments": 13}), "installments"),
    ] {
        let refused = loan(change.clone()).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, field), "{change}");
    }
    let approve = async |answer: Answer| {
        let path = format!("/api/v1/loans/{}/approve", text(&answer.json()["id"]));
        s.send("POST", &path, None).await
    };
    let alone = approve(loan(json!({})).await).await;
    assert_eq!(seen(&alone), is(409, "too_few_guarantors"));
    let with = json!({"guarantor_ids": [eva]});
    // Of two that are approved at once one is one too many.
    let (first, second) = (loan(with.clone()).await, loan(with.clone()).await);
    let (a, b) = tokio::join!(approve(first), approve(second));
    let mut both = [seen(&a), seen(&b)];
    both.sort();
    assert_eq!(both, [is(200, ""), is(409, "too_many_loans")], "{a:?} {b:?}");
    // A rule that came after the draft goes too.
    let draft = loan(with).await;
    let rules = json!({"max_amount": 10});
    assert_eq!(s.send("PUT", path, Some(rules)).await.status, 200);
    assert_eq!(seen(&approve(draft).await), is(409, "loan_rules"));
    // Settings of a module that is off are not there.
    assert_eq!(seen(&s.send("GET", "/api/v1/settings/patients", None).await), is(404, "module_disabled"));
    let core = json!({"language": "fr", "audit_keep_days": 100});
    assert_eq!(s.send("PUT", "/api/v1/settings/core", Some(core.clone())).await.json(), core);
    let short = s.send("PUT", "/api/v1/settings/core", Some(json!({"audit_keep_days": 29}))).await;
    assert_eq!(short.status, 422);
    let filtered = s.send("GET", "/api/v1/loans?status=draft", None).await.json();
    assert_eq!(filtered["items"].as_array().map(Vec::len), Some(3), "{filtered}");
    let filtered = s.send("GET", &format!("/api/v1/loans?member_id={eva}"), None).await.json();
    assert_eq!(filtered["items"].as_array().map(Vec::len), Some(0));
    assert_eq!(s.send("GET", "/api/v1/loans?status=gone", None).await.status, 400);
}

/// C-08: the plan's number of users holds under a race, and for users who come back.
#[tokio::test(flavor = "multi_thread")]
async fn the_plans_number_of_users() {
    let s = std::sync::Arc::new(Society::new().await);
    s.dev.cli_json(&["tenant", "set", "paris", "limits.users=3"]).await;
    let limit = s.send("GET", "/api/v1/tenant", None).await.json();
    assert_eq!(limit["limits"]["users"], 3, "{limit}");
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let s = s.clone();
            gmah_shared::tasks::detach("join", async move {
                let body = json!({"email": format!("u{n}@paris.example"), "name": "U", "role": "member", "password": "correct horse"});
                s.send("POST", "/api/v1/users", Some(body)).await
            })
        })
        .collect();
    let mut made = Vec::new();
    for task in tasks {
        let answer = task.await.expect("joined");
        match answer.status {
            201 => made.push(text(&answer.json()["id"]).to_owned()),
            409 => {
                let body = answer.json();
                assert_eq!((text(&body["code"]), text(&body["limit"])), ("plan_limit_reached", "users"));
                assert_eq!((body["allowed"].as_i64(), text(&body["plan"])), (Some(3), "professional"));
            }
            // As many hashes of one organisation wait at once as may.
            _ => assert_eq!(answer.status, 503, "{answer:?}"),
        }
    }
    assert_eq!(made.len(), 2, "beside the administrator");
    let disable = |id: &str, disabled: bool| {
        let (s, path) = (s.clone(), format!("/api/v1/users/{id}"));
        async move { s.send("PATCH", &path, Some(json!({ "disabled": disabled }))).await }
    };
    assert_eq!(disable(&made[0], true).await.status, 200);
    let body =
        json!({"email": "new@paris.example", "name": "U", "role": "member", "password": "correct horse"});
    assert_eq!(s.send("POST", "/api/v1/users", Some(body)).await.status, 201);
    assert_eq!(seen(&disable(&made[0], false).await), is(409, "plan_limit_reached"));
}
