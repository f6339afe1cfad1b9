//! A hospital: records that nobody reads unnoticed or in the database, stays, invoices and their payments.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::{Answer, Dev};

const DB: &str = "gmah_org_hopital_central";

struct Hospital {
    dev: Dev,
    bearer: String,
}

impl Hospital {
    async fn new() -> Self {
        let dev = Dev::start().await;
        let bearer = format!("Bearer {}", dev.login("hopital-central").await);
        Self { dev, bearer }
    }

    async fn send(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let headers = [("Authorization", self.bearer.as_str())];
        let body = body.map(|b| b.to_string());
        self.dev.client.send(method, &self.dev.host("hopital-central"), path, &headers, body.as_deref()).await
    }

    async fn made(&self, path: &str, body: Value) -> Value {
        let made = self.send("POST", path, Some(body)).await;
        assert_eq!(made.status, 201, "{path}: {made:?}");
        made.json()
    }

    async fn count(&self, sql: &str) -> i64 {
        self.dev.value(DB, sql).await.parse().expect("count")
    }
}

fn seen(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn patient() -> Value {
    json!({"first_name": "Ada", "last_name": "Lovelace", "birth_date": "1985-12-10",
           "national_id": "2 85 12 75 116 001 - 22", "address": "12 rue Secrète", "notes": "allergic to penicillin\nand cats"})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_is_nowhere_in_clear() {
    let h = Hospital::new().await;
    let made = h.made("/api/v1/patients", patient()).await;
    let id = text(&made["id"]).to_owned();
    assert_eq!((text(&made["national_id"]), text(&made["address"])), ("285127511600122", "12 rue Secrète"));
    let path = format!("/api/v1/patients/{id}");
    let shown = h.send("GET", &path, None).await;
    assert_eq!(shown.json(), made);
    // Lists do not show it; it finds all the same, however it is written.
    let list = h.send("GET", "/api/v1/patients?national_id=2851275.116.00122", None).await;
    assert_eq!(list.json()["items"].as_array().map(Vec::len), Some(1), "{list:?}");
    assert!(!list.body.contains("285127511600122") && !list.body.contains("penicillin"));
    assert_eq!(h.send("GET", "/api/v1/patients?national_id=1", None).await.json()["items"], json!([]));
    let change = json!({"notes": "allergic to nothing", "address": null});
    let changed = h.send("PATCH", &path, Some(change)).await;
    assert_eq!((changed.status, &changed.json()["address"]), (200, &Value::Null), "{changed:?}");
    for never in ["first_name", "birth_date"] {
        let refused = h.send("PATCH", &path, Some(json!({never: null, "phone": "+33 1 23 45 67 89"}))).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, never), "{refused:?}");
    }
    assert_eq!(h.send("GET", &path, None).await.json(), changed.json());
    // The same number is nobody else's.
    assert_eq!(
        seen(&h.send("POST", "/api/v1/patients", Some(patient())).await),
        is(409, "national_id_taken")
    );
    let other = text(
        &h.made(
            "/api/v1/patients",
            json!({"first_name": "Eva", "last_name": "Byron", "birth_date": "2001-01-01"}),
        )
        .await["id"],
    )
    .to_owned();
    let taken = json!({"national_id": "285127511600122"});
    let other = format!("/api/v1/patients/{other}");
    assert_eq!(seen(&h.send("PATCH", &other, Some(taken)).await), is(409, "national_id_taken"));
    // Every row of every table, as text and as bytes.
    let tables = h.dev.value(DB, "select string_agg(relname, ',') from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace").await;
    let mut looked = 0;
    for table in tables.split(',') {
        let rows = h
            .dev
            .value(DB, &format!("select coalesce(string_agg(t::text, ' '), '') from \"{table}\" t"))
            .await;
        for secret in ["285127511600122", "penicillin", "rue Secr", "allergic"] {
            let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
            assert!(!rows.contains(secret) && !rows.contains(&hex), "{secret} in {table}");
        }
        looked += 1;
    }
    assert!(looked > 15, "{looked}");
    // A value that is moved to another row opens nowhere.
    h.dev.execute(DB, &format!("update patients set notes = (select notes from patients where id = '{id}') where notes is null")).await;
    let moved = h.send("GET", &other, None).await;
    assert_eq!(moved.status, 500);
    assert!(!moved.body.contains("allergic"));
    assert!(!h.dev.log().contains("penicillin") && !h.dev.log().contains("285127511600122"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_record_is_written_down() {
    let h = Hospital::new().await;
    let id = text(&h.made("/api/v1/patients", patient()).await["id"]).to_owned();
    let path = format!("/api/v1/patients/{id}");
    assert_eq!(h.send("GET", &path, None).await.status, 200);
    assert_eq!(h.send("GET", "/api/v1/patients?limit=3", None).await.status, 200);
    let export = h.send("GET", "/api/v1/patients/export", None).await;
    assert!(
        export.body.contains("285127511600122")
            && export.body.contains("\"allergic to penicillin\nand cats\"")
    );
    // A change of nothing is answered with the record.
    assert_eq!(h.send("PATCH", &path, Some(json!({}))).await.status, 200);
    // Refused, so nothing was read.
    assert_eq!(h.send("GET", &format!("/api/v1/patients/{}", uuid::Uuid::new_v4()), None).await.status, 404);
    let entries = h.send("GET", "/api/v1/audit", None).await;
    let items = entries.json()["items"].as_array().expect("items").clone();
    let actions: Vec<_> = items.iter().map(|i| text(&i["action"]).to_owned()).collect();
    assert_eq!(
        actions,
        [
            "patients.read",
            "patients.export",
            "patients.list",
            "patients.read",
            "patients.create",
            "sessions.begin"
        ]
    );
    assert_eq!(text(&items[3]["entity_id"]), id);
    assert_eq!(items[2]["after"]["count"], 3, "what was shown, and not the one after it");
    assert!(!entries.body.contains("penicillin"));
    assert!(text(&items[4]["after"]["notes"]).starts_with("sealed "), "{entries:?}");
    // A manager may read patients, and not take all of them along unless told so; nor read the audit.
    for (what, field) in [
        (json!({"first_name": "A", "last_name": "B", "birth_date": "1849-12-31"}), "birth_date"),
        (json!({"first_name": "A", "last_name": "B", "birth_date": "2999-01-01"}), "birth_date"),
        (json!({"first_name": "A", "last_name": "B", "birth_date": "2000-02-30"}), "birth_date"),
        (
            json!({"first_name": "A", "last_name": "B", "birth_date": "2000-01-01", "national_id": "é"}),
            "national_id",
        ),
        (
            json!({"first_name": "A", "last_name": "B", "birth_date": "2000-01-01", "notes": "n".repeat(10_001)}),
            "notes",
        ),
        (
            json!({"first_name": "A", "last_name": "B", "birth_date": "2000-01-01", "notes": "nul\u{0}"}),
            "notes",
        ),
    ] {
        let refused = h.send("POST", "/api/v1/patients", Some(what.clone())).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, field), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stays() {
    let h = Arc::new(Hospital::new().await);
    let patient = text(&h.made("/api/v1/patients", patient()).await["id"]).to_owned();
    let admit = |ward: &str| {
        let (h, body) = (h.clone(), json!({"patient_id": patient, "ward": ward, "reason": "A broken leg"}));
        async move { h.send("POST", "/api/v1/hospitalizations", Some(body)).await }
    };
    // Nobody is in two beds, however many ask at once.
    let tasks: Vec<_> = (0..6).map(|_| gmah_shared::tasks::detach("admit", admit("Surgery"))).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.expect("joined"));
    }
    let (good, bad): (Vec<_>, Vec<_>) = outcomes.iter().partition(|a| a.status == 201);
    assert_eq!(good.len(), 1);
    assert!(bad.iter().all(|a| seen(a) == is(409, "already_admitted")), "{bad:?}");
    let stay = good[0].json();
    let path = format!("/api/v1/hospitalizations/{}", text(&stay["id"]));
    assert_eq!((text(&stay["reason"]), &stay["discharged_at"]), ("A broken leg", &Value::Null));
    assert_eq!(
        h.count("select count(*) from hospitalizations where encode(reason, 'escape') like '%leg%'").await,
        0
    );
    let moved = h.send("PATCH", &path, Some(json!({"ward": "Recovery"}))).await;
    assert_eq!((moved.status, text(&moved.json()["ward"])), (200, "Recovery"));
    for (query, expected) in
        [("current=true", 1), ("current=false", 0), ("ward=Recovery", 1), ("ward=Surgery", 0)]
    {
        let list =
            h.send("GET", &format!("/api/v1/hospitalizations?{query}&patient_id={patient}"), None).await;
        assert_eq!(list.json()["items"].as_array().map(Vec::len), Some(expected), "{query}: {list:?}");
    }
    let discharge = format!("{path}/discharge");
    for bad in ["1999-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
        let refused = h.send("POST", &discharge, Some(json!({"discharged_at": bad}))).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (422, "discharged_at"), "{bad}");
    }
    assert_eq!(h.send("POST", &discharge, Some(json!({}))).await.status, 200);
    assert_eq!(seen(&h.send("POST", &discharge, Some(json!({}))).await), is(409, "discharged"));
    assert_eq!(seen(&h.send("PATCH", &path, Some(json!({"ward": "Recovery"}))).await), is(409, "discharged"));
    // Not while one was here.
    for (at, status, field) in [
        ("2001-01-01T00:00:00Z", 422, "admitted_at"),
        ("9999-12-31T23:59:59-01:00", 422, "admitted_at"),
        ("1899-12-31T00:00:00Z", 422, "admitted_at"),
    ] {
        let body = json!({"patient_id": patient, "ward": "Surgery", "admitted_at": at});
        let refused = h.send("POST", "/api/v1/hospitalizations", Some(body)).await;
        assert_eq!((refused.status, text(&refused.json()["field"])), (status, field), "{at}");
    }
    assert_eq!(admit("Surgery").await.status, 201, "once more");
    let nobody = json!({"patient_id": uuid::Uuid::new_v4(), "ward": "Surgery"});
    let refused = h.send("POST", "/api/v1/hospitalizations", Some(nobody)).await;
    assert_eq!((refused.status, text(&refused.json()["field"])), (422, "patient_id"));
    // A hospital that says which wards it has has no others.
    let wards = json!({"wards": ["Surgery", "Recovery"]});
    assert_eq!(h.send("PUT", "/api/v1/settings/patients", Some(wards)).await.status, 200);
    let current = h.send("GET", "/api/v1/hospitalizations?current=true", None).await.json();
    let path = format!("/api/v1/hospitalizations/{}", text(&current["items"][0]["id"]));
    let refused = h.send("PATCH", &path, Some(json!({"ward": "Attic"}))).await;
    assert_eq!((refused.status, text(&refused.json()["field"])), (422, "ward"));
}

#[tokio::test(flavor = "multi_thread")]
async fn invoices_add_up() {
    let h = Arc::new(Hospital::new().await);
    let patient = text(&h.made("/api/v1/patients", patient()).await["id"]).to_owned();
    let stay = h.made("/api/v1/hospitalizations", json!({"patient_id": patient, "ward": "A"})).await;
    let invoice = h
        .made(
            "/api/v1/invoices",
            json!({"patient_id": patient, "hospitalization_id": stay["id"], "amount": 1000}),
        )
        .await;
    assert_eq!(
        (text(&invoice["currency"]), text(&invoice["status"]), &invoice["balance"]),
        ("EUR", "open", &json!(1000))
    );
    assert!(invoice["due_on"].is_string());
    let path = format!("/api/v1/invoices/{}", text(&invoice["id"]));
    let payments = format!("{path}/payments");
    // Twenty pay a tenth at once: ten are enough.
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (h, payments) = (h.clone(), payments.clone());
            gmah_shared::tasks::detach("pay", async move {
                h.send("POST", &payments, Some(json!({"amount": 100}))).await
            })
        })
        .collect();
    let mut paid = Vec::new();
    for task in tasks {
        let answer = task.await.expect("joined");
        match answer.status {
            201 => paid.push(text(&answer.json()["id"]).to_owned()),
            status => assert!([409, 422].contains(&status), "{answer:?}"),
        }
    }
    let stands = async || {
        let i = h.send("GET", &path, None).await.json();
        (text(&i["status"]).to_owned(), i["paid"].as_i64().unwrap_or(-1), i["balance"].as_i64().unwrap_or(-1))
    };
    assert_eq!((paid.len(), stands().await), (10, ("paid".to_owned(), 1000, 0)));
    let reversal = format!("{payments}/{}/reversal", paid[0]);
    assert_eq!(h.send("POST", &reversal, None).await.status, 201);
    assert_eq!(stands().await, ("open".to_owned(), 900, 100));
    assert_eq!(seen(&h.send("POST", &reversal, None).await), is(409, "payment_reversed"));
    assert_eq!(seen(&h.send("POST", &format!("{path}/cancel"), None).await), is(409, "invoice_status"));
    let more = h.send("POST", &payments, Some(json!({"amount": 101}))).await;
    assert_eq!((more.status, text(&more.json()["field"])), (422, "amount"));
    let other = h.send("POST", &payments, Some(json!({"amount": 1, "currency": "USD"}))).await;
    assert_eq!((other.status, text(&other.json()["field"])), (422, "currency"));
    let list = h.send("GET", &format!("{payments}?limit=200"), None).await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(11));
    // One that nobody paid anything of goes away, once.
    let unpaid = h
        .made(
            "/api/v1/invoices",
            json!({"patient_id": patient, "amount": 5, "currency": "USD", "due_on": "2030-01-01"}),
        )
        .await;
    let cancel = format!("/api/v1/invoices/{}/cancel", text(&unpaid["id"]));
    assert_eq!(h.send("POST", &cancel, None).await.json()["status"], "cancelled");
    assert_eq!(seen(&h.send("POST", &cancel, None).await), is(409, "invoice_status"));
    let pay = format!("/api/v1/invoices/{}/payments", text(&unpaid["id"]));
    assert_eq!(seen(&h.send("POST", &pay, Some(json!({"amount": 1}))).await), is(409, "invoice_status"));
    for (query, expected) in [("open", 1), ("paid", 0), ("cancelled", 1)] {
        let list =
            h.send("GET", &format!("/api/v1/invoices?status={query}&patient_id={patient}"), None).await;
        assert_eq!(list.json()["items"].as_array().map(Vec::len), Some(expected), "{query}");
    }
    // A stay of somebody else's.
    let eva = h
        .made("/api/v1/patients", json!({"first_name": "Eva", "last_name": "B", "birth_date": "2001-01-01"}))
        .await;
    let crossed = json!({"patient_id": eva["id"], "hospitalization_id": stay["id"], "amount": 5});
    let refused = h.send("POST", "/api/v1/invoices", Some(crossed)).await;
    assert_eq!((refused.status, text(&refused.json()["field"])), (422, "hospitalization_id"));
    // Nobody changes what was paid, not in the database either.
    let db = h.dev.superuser(DB).await;
    for sql in ["update invoice_payments set amount = 1", "delete from invoice_payments"] {
        assert!(db.batch_execute(sql).await.is_err(), "{sql}");
    }
    let broken = "select count(*) from invoices i where (select coalesce(sum(case when reverses is null then amount else -amount end), 0) from invoice_payments p where p.invoice_id = i.id) not between 0 and i.amount";
    assert_eq!(h.count(broken).await, 0);
}
