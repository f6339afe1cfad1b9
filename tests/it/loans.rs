//! Loans and their payments: what may follow on what, and that the sums always add up.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev};

struct Society {
    dev: Dev,
    token: String,
    members: Vec<String>,
}

impl Society {
    async fn new() -> Self {
        let dev = Dev::start().await;
        let token = dev.login("paris").await;
        let page = dev.get_as("paris", "/api/v1/members?limit=5", &token).await.json();
        let members =
            page["items"].as_array().expect("members").iter().map(|m| text(&m["id"]).to_owned()).collect();
        Self { dev, token, members }
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let body = body.map(Value::to_string);
        let headers = [("Authorization", bearer.as_str())];
        self.dev.client.send(method, &self.dev.host("paris"), path, &headers, body.as_deref()).await
    }

    fn draft(&self) -> Value {
        json!({"member_id": self.members[0], "amount": 1000, "currency": "EUR", "installments": 3,
               "first_due_on": "2027-01-31", "purpose": "A roof", "guarantor_ids": [self.members[1], self.members[2]]})
    }

    /// A loan of 1000 that is approved.
    async fn approved(&self) -> String {
        let made = self.send("POST", "/api/v1/loans", Some(&self.draft())).await;
        assert_eq!((made.status, &made.json()["status"]), (201, &json!("draft")), "{made:?}");
        let id = text(&made.json()["id"]).to_owned();
        let approved = self.send("POST", &format!("/api/v1/loans/{id}/approve"), None).await;
        assert_eq!((approved.status, &approved.json()["status"]), (200, &json!("approved")), "{approved:?}");
        id
    }

    async fn pay(&self, loan: &str, direction: &str, amount: i64) -> Answer {
        let body = json!({"direction": direction, "amount": amount});
        self.send("POST", &format!("/api/v1/loans/{loan}/payments"), Some(&body)).await
    }

    async fn reverse(&self, loan: &str, payment: &Answer) -> Answer {
        let id = text(&payment.json()["id"]).to_owned();
        self.send("POST", &format!("/api/v1/loans/{loan}/payments/{id}/reversal"), None).await
    }

    /// Status, paid out, repaid, balance.
    async fn stands(&self, loan: &str) -> (String, i64, i64, i64) {
        let l = self.send("GET", &format!("/api/v1/loans/{loan}"), None).await.json();
        let number = |name: &str| l[name].as_i64().expect("number");
        (text(&l["status"]).to_owned(), number("paid_out"), number("repaid"), number("balance"))
    }
}

fn at(status: &str, out: i64, back: i64) -> (String, i64, i64, i64) {
    (status.to_owned(), out, back, out - back)
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_loan() {
    let s = Society::new().await;
    let loan = s.approved().await;
    let again = s.send("POST", &format!("/api/v1/loans/{loan}/approve"), None).await;
    assert_eq!(refused(&again), code(409, "loan_status"));
    assert_eq!(refused(&s.pay(&loan, "in", 1).await), code(409, "loan_status"), "nothing went out yet");
    let shown = s.send("GET", &format!("/api/v1/loans/{loan}"), None).await.json();
    let parts: Vec<_> = shown["schedule"]
        .as_array()
        .expect("schedule")
        .iter()
        .map(|p| (p["amount"].clone(), p["due_on"].clone()))
        .collect();
    assert_eq!(
        parts,
        [
            (json!(334), json!("2027-01-31")),
            (json!(333), json!("2027-02-28")),
            (json!(333), json!("2027-03-31"))
        ]
    );
    assert_eq!(shown["guarantor_ids"].as_array().map(Vec::len), Some(2));

    let first = s.pay(&loan, "out", 400).await;
    assert_eq!((first.status, &first.json()["currency"]), (201, &json!("EUR")));
    assert_eq!(s.stands(&loan).await, at("active", 400, 0));
    assert_eq!(refused(&s.pay(&loan, "out", 601).await), code(422, "invalid"), "more than was agreed");
    assert_eq!(s.pay(&loan, "out", 600).await.status, 201);
    assert_eq!(refused(&s.pay(&loan, "in", 1001).await), code(422, "invalid"), "more than is owed");
    assert_eq!(s.pay(&loan, "in", 1).await.status, 201);
    let last = s.pay(&loan, "in", 999).await;
    assert_eq!(s.stands(&loan).await, at("repaid", 1000, 1000));
    for direction in ["in", "out"] {
        assert_eq!(refused(&s.pay(&loan, direction, 1).await), code(409, "loan_status"));
    }

    // A mistake is taken back by another payment, once, and the loan is where it was.
    assert_eq!(refused(&s.reverse(&loan, &first).await), code(409, "payment_needed"), "it came back already");
    let taken_back = s.reverse(&loan, &last).await;
    assert_eq!((taken_back.status, &taken_back.json()["reverses"]), (201, &last.json()["id"]));
    assert_eq!(s.stands(&loan).await, at("active", 1000, 1));
    for payment in [&last, &taken_back] {
        assert_eq!(refused(&s.reverse(&loan, payment).await), code(409, "payment_reversed"));
    }
    assert_eq!(s.reverse(&loan, &first).await.status, 201);
    assert_eq!(s.stands(&loan).await, at("active", 600, 1));
    let page = s.send("GET", &format!("/api/v1/loans/{loan}/payments?limit=4"), None).await.json();
    assert_eq!(page["items"].as_array().map(Vec::len), Some(4));
    let next = format!("/api/v1/loans/{loan}/payments?cursor={}", text(&page["next_cursor"]));
    assert_eq!(s.send("GET", &next, None).await.json()["items"].as_array().map(Vec::len), Some(2));

    let off = s.send("POST", &format!("/api/v1/loans/{loan}/write-off"), None).await;
    assert_eq!((off.status, &off.json()["status"]), (200, &json!("written_off")));
    assert_eq!(refused(&s.pay(&loan, "in", 1).await), code(409, "loan_status"));

    // Nobody changes what was paid, through the api's own role or a superuser's.
    for sql in ["update payments set amount = 1", "delete from payments"] {
        let owner = s.dev.superuser("gmah_org_paris").await;
        assert!(owner.batch_execute(sql).await.is_err(), "{sql}");
    }
    let rights = "select has_table_privilege('gmah_org_paris', 'payments', 'update') or
                  has_table_privilege('gmah_org_paris', 'payments', 'delete')";
    assert_eq!(s.dev.value("gmah_org_paris", rights).await, "f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a04_what_is_no_loan_and_no_payment() {
    let s = Society::new().await;
    let count = "select count(*) from loans";
    let nobody = uuid::Uuid::new_v4().to_string();
    for (field, value) in [
        ("amount", json!(0)),
        ("amount", json!(-5)),
        ("amount", json!(1_000_000_000_001_i64)),
        ("amount", json!(10.5)),
        ("amount", json!("10")),
        ("currency", json!("eur")),
        ("currency", json!("EURO")),
        ("installments", json!(0)),
        ("installments", json!(241)),
        ("first_due_on", json!("2027-02-30")),
        ("first_due_on", json!("27-02-01")),
        ("member_id", json!(nobody)),
        ("guarantor_ids", json!([nobody])),
        ("guarantor_ids", json!([s.members[0]])),
        ("guarantor_ids", json!([s.members[1], s.members[1]])),
        ("purpose", json!("x".repeat(501))),
        ("status", json!("approved")),
        ("paid_out", json!(5)),
    ] {
        let mut body = s.draft();
        body[field] = value.clone();
        let seen = s.send("POST", "/api/v1/loans", Some(&body)).await;
        let named = seen.json()["field"].as_str().unwrap_or("").to_owned();
        assert!(seen.status == 422 && named.starts_with(field), "{field} {value}: {seen:?}");
    }
    assert_eq!(s.dev.value("gmah_org_paris", count).await, "0", "nothing half made");
    let loan = s.approved().await;
    for (body, field) in [
        (json!({"direction": "sideways", "amount": 1}), "direction"),
        (json!({"direction": "out", "amount": 0}), "amount"),
        (json!({"direction": "out", "amount": 1, "currency": "USD"}), "currency"),
        (json!({"direction": "out", "amount": 1, "paid_on": "2999-01-01"}), "paid_on"),
        (json!({"direction": "out", "amount": 1, "reverses": nobody}), "reverses"),
    ] {
        let seen = s.send("POST", &format!("/api/v1/loans/{loan}/payments"), Some(&body)).await;
        assert_eq!((seen.status, seen.json()["field"].as_str()), (422, Some(field)), "{seen:?}");
    }
    for path in [
        format!("/api/v1/loans/{nobody}"),
        format!("/api/v1/loans/{nobody}/payments"),
        "/api/v1/loans/x".into(),
    ] {
        assert_eq!(s.send("GET", &path, None).await.status, 404, "{path}");
    }
    assert_eq!(s.stands(&loan).await, at("approved", 0, 0));
}

/// The sums hold whoever pays at the same time: of twenty who each pay all that is owed, one does.
#[tokio::test(flavor = "multi_thread")]
async fn payments_at_once_add_up() {
    let s = Arc::new(Society::new().await);
    let loan = s.approved().await;
    for (direction, after) in [("out", at("active", 1000, 0)), ("in", at("repaid", 1000, 1000))] {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (s, loan, direction) = (s.clone(), loan.clone(), direction.to_owned());
                gmah_shared::tasks::detach("pays", async move { s.pay(&loan, &direction, 1000).await })
            })
            .collect();
        let mut paid = Vec::new();
        for task in tasks {
            let answer = task.await.expect("joined");
            assert!(matches!(answer.status, 201 | 409 | 422), "{answer:?}");
            paid.extend((answer.status == 201).then_some(answer));
        }
        assert_eq!(paid.len(), 1, "{direction}");
        assert_eq!(s.stands(&loan).await, after);
    }
    // And one reversal of many.
    let page = s.send("GET", &format!("/api/v1/loans/{loan}/payments"), None).await.json();
    let id = text(&page["items"][1]["id"]).to_owned();
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (s, path) = (s.clone(), format!("/api/v1/loans/{loan}/payments/{id}/reversal"));
            gmah_shared::tasks::detach("reverses", async move { s.send("POST", &path, None).await.status })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        made += usize::from(task.await.expect("joined") == 201);
    }
    assert_eq!((made, s.stands(&loan).await), (1, at("active", 1000, 0)));
    let invariant = "select count(*) from (
            select l.amount,
                   coalesce(sum(case when p.reverses is null then p.amount else -p.amount end) filter (where p.direction = 'out'), 0) as o,
                   coalesce(sum(case when p.reverses is null then p.amount else -p.amount end) filter (where p.direction = 'in'), 0) as i
            from loans l left join payments p on p.loan_id = l.id group by l.id, l.amount) s
        where not (0 <= i and i <= o and o <= amount)";
    assert_eq!(s.dev.value("gmah_org_paris", invariant).await, "0");
}
