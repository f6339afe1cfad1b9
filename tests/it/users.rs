//! Family A: users, roles, sessions, and how passwords are guessed in vain.

use serde_json::{Value, json};

use crate::harness::dev::text;
use crate::harness::http::{exchange, request};
use crate::harness::{Answer, Dev};

async fn send(dev: &Dev, method: &str, path: &str, token: &str, body: Option<&Value>) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let body = body.map(Value::to_string);
    dev.client.send(method, &dev.host("paris"), path, &headers, body.as_deref()).await
}

async fn user(dev: &Dev, token: &str, name: &str, role: &str) -> String {
    let body = json!({"email": format!("{name}@paris.example"), "name": name, "role": role, "password": "correct horse"});
    let made = send(dev, "POST", "/api/v1/users", token, Some(&body)).await;
    assert_eq!(made.status, 201, "{made:?}");
    text(&made.json()["id"]).to_owned()
}

async fn login(dev: &Dev, name: &str) -> String {
    dev.login_as("paris", &format!("{name}@paris.example"), "correct horse").await
}

fn refused(answer: &Answer) -> (u16, String) {
    (answer.status, answer.code())
}

fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// What each role may do, by the routes themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a01_roles_decide() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let member = json!({"first_name": "Ada", "last_name": "Lovelace"});
    let new = json!({"email": "new@paris.example", "name": "New", "role": "member"});
    let role = json!({"key": "treasurer", "title": "Treasurer", "permissions": ["members.read"]});
    let table: [(&str, [u16; 5]); 4] = [
        // list members, create a member, list users, create a user, create a role
        ("administrator", [200, 201, 200, 201, 201]),
        ("manager", [200, 201, 200, 403, 403]),
        ("member", [200, 403, 403, 403, 403]),
        ("read_only", [200, 403, 200, 403, 403]),
    ];
    for (name, expected) in table {
        user(&dev, &admin, name, name).await;
        let token = login(&dev, name).await;
        let me = send(&dev, "GET", "/api/v1/auth/me", &token, None).await.json();
        assert_eq!((text(&me["role"]), me["permissions"].is_array()), (name, true));
        let seen = [
            send(&dev, "GET", "/api/v1/members", &token, None).await.status,
            send(&dev, "POST", "/api/v1/members", &token, Some(&member)).await.status,
            send(&dev, "GET", "/api/v1/users", &token, None).await.status,
            send(&dev, "POST", "/api/v1/users", &token, Some(&new)).await.status,
            send(&dev, "POST", "/api/v1/roles", &token, Some(&role)).await.status,
        ];
        assert_eq!(seen, expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a04_users_and_roles_of_ones_own() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let me = text(&send(&dev, "GET", "/api/v1/auth/me", &admin, None).await.json()["id"]).to_owned();
    let post = async |path: &str, body: Value| send(&dev, "POST", path, &admin, Some(&body)).await;
    let patch = async |path: String, body: Value| send(&dev, "PATCH", &path, &admin, Some(&body)).await;

    let clerk = json!({"key": "clerk", "title": "Clerk", "permissions": ["users.*", "members.read"]});
    assert_eq!(post("/api/v1/roles", clerk.clone()).await.status, 201);
    assert_eq!(refused(&post("/api/v1/roles", clerk).await), code(409, "role_taken"));
    for (bad, field) in [
        (json!({"key": "x y", "title": "x", "permissions": []}), "key"),
        (json!({"key": "x", "title": " ", "permissions": []}), "title"),
        (json!({"key": "x", "title": "x", "permissions": ["members.read", "fly"]}), "permissions[1]"),
        (json!({"key": "x", "title": "x", "permissions": [], "is_builtin": true}), "is_builtin"),
    ] {
        let seen = post("/api/v1/roles", bad).await;
        assert_eq!((seen.status, text(&seen.json()["field"])), (422, field), "{seen:?}");
    }

    let id = user(&dev, &admin, "clerk", "clerk").await;
    for (bad, expected) in [
        (json!({"email": "clerk@paris.example", "name": "x", "role": "member"}), code(409, "email_taken")),
        (json!({"email": "CLERK@paris.example", "name": "x", "role": "member"}), code(409, "email_taken")),
        (json!({"email": "nobody", "name": "x", "role": "member"}), code(422, "invalid")),
        (json!({"email": "a@x.example", "name": "x", "role": "nothing"}), code(422, "invalid")),
        (json!({"email": "a@x.example", "name": "", "role": "member"}), code(422, "invalid")),
        (
            json!({"email": "a@x.example", "name": "x", "role": "member", "password": "short"}),
            code(422, "invalid"),
        ),
        (json!({"email": "a@x.example", "name": "x", "role": "member", "id": me}), code(422, "invalid")),
    ] {
        assert_eq!(refused(&post("/api/v1/users", bad.clone()).await), expected, "{bad}");
    }

    // Nobody makes somebody, or themselves, more than they are.
    let token = login(&dev, "clerk").await;
    for (method, path, body) in [
        (
            "POST",
            "/api/v1/users".to_owned(),
            json!({"email": "b@x.example", "name": "b", "role": "administrator"}),
        ),
        ("PATCH", format!("/api/v1/users/{id}"), json!({"role": "administrator"})),
        ("PATCH", format!("/api/v1/users/{me}"), json!({"disabled": true})),
        ("POST", "/api/v1/roles".to_owned(), json!({"key": "y", "title": "y", "permissions": ["*"]})),
    ] {
        let seen = send(&dev, method, &path, &token, Some(&body)).await;
        assert_eq!(refused(&seen), code(403, "forbidden"), "{method} {path} {body}");
    }

    // A role that changes goes for its users at once.
    assert_eq!(send(&dev, "GET", "/api/v1/members", &token, None).await.status, 200);
    assert_eq!(patch("/api/v1/roles/clerk".into(), json!({"permissions": ["users.read"]})).await.status, 200);
    assert_eq!(send(&dev, "GET", "/api/v1/members", &token, None).await.status, 403);
    for builtin in ["administrator", "member"] {
        let path = format!("/api/v1/roles/{builtin}");
        assert_eq!(
            refused(&patch(path.clone(), json!({"permissions": []})).await),
            code(409, "role_builtin")
        );
        assert_eq!(refused(&send(&dev, "DELETE", &path, &admin, None).await), code(409, "role_builtin"));
    }
    let used = send(&dev, "DELETE", "/api/v1/roles/clerk", &admin, None).await;
    assert_eq!(refused(&used), code(409, "role_in_use"));
    let path = format!("/api/v1/users/{id}");
    assert_eq!(patch(path.clone(), json!({"role": "member"})).await.status, 200);
    assert_eq!(
        refused(&send(&dev, "GET", "/api/v1/auth/me", &token, None).await),
        code(401, "unauthenticated")
    );
    assert_eq!(send(&dev, "DELETE", "/api/v1/roles/clerk", &admin, None).await.status, 204);
    assert_eq!(send(&dev, "DELETE", "/api/v1/roles/clerk", &admin, None).await.status, 404);

    // What no text may hold is refused where it is, and a date that is none does not end the connection.
    for (method, path, body, status) in [
        ("PATCH", "/api/v1/roles/a%00b", Some(json!({"title": "x"})), 400),
        (
            "POST",
            "/api/v1/users",
            Some(json!({"email": "n@x.example", "name": "n", "role": "\u{0}", "password": "correct horse"})),
            400,
        ),
        ("GET", "/api/v1/audit?action=%00", None, 422),
        ("GET", "/api/v1/audit?entity_id=%00", None, 422),
        (
            "POST",
            "/api/v1/api-keys",
            Some(json!({"name": "k", "scopes": ["members.read"], "expires_at": "9999-12-31T23:59:59-01:00"})),
            422,
        ),
        (
            "POST",
            "/api/v1/users",
            Some(json!({"email": "a..b@x.example", "name": "n", "role": "member"})),
            422,
        ),
    ] {
        let seen = send(&dev, method, path, &admin, body.as_ref()).await;
        assert_eq!(seen.status, status, "{method} {path}: {seen:?}");
    }
    // Two who change one role do not undo each other.
    let role = json!({"key": "twice", "title": "T", "permissions": []});
    assert_eq!(post("/api/v1/roles", role).await.status, 201);
    let same = patch("/api/v1/roles/twice".into(), json!({"title": "T"})).await;
    let tag = same.header("etag").expect("a tag").to_owned();
    let bearer = format!("Bearer {admin}");
    for (title, status) in [("First", 200), ("Second", 412)] {
        let headers = [("Authorization", bearer.as_str()), ("If-Match", tag.as_str())];
        let body = json!({ "title": title }).to_string();
        let seen =
            dev.client.send("PATCH", &dev.host("paris"), "/api/v1/roles/twice", &headers, Some(&body)).await;
        assert_eq!(seen.status, status, "{title}: {seen:?}");
    }
    // The last administrator stays one.
    for change in [json!({"disabled": true}), json!({"role": "member"})] {
        let seen = patch(format!("/api/v1/users/{me}"), change).await;
        assert_eq!(refused(&seen), code(409, "last_administrator"));
    }
    assert_eq!(
        send(&dev, "GET", "/api/v1/auth/me", &admin, None).await.status,
        200,
        "and is still logged in"
    );
    assert_eq!(refused(&patch(path.clone(), json!({})).await), code(422, "invalid"));

    // Disabled: logged out, and not in again.
    let token = login(&dev, "clerk").await;
    assert_eq!(patch(path, json!({"disabled": true})).await.json()["disabled"], true);
    assert_eq!(send(&dev, "GET", "/api/v1/auth/me", &token, None).await.status, 401);
    let body = json!({"email": "clerk@paris.example", "password": "correct horse"});
    assert_eq!(
        refused(&dev.post("paris", "/api/v1/auth/login", &[], &body).await),
        code(401, "bad_credentials")
    );
    let listed = send(&dev, "GET", "/api/v1/users?limit=1", &admin, None).await.json();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    let next = format!("/api/v1/users?cursor={}", text(&listed["next_cursor"]));
    assert_eq!(
        send(&dev, "GET", &next, &admin, None).await.json()["items"][0]["email"],
        "clerk@paris.example"
    );
    let elsewhere = format!("/api/v1/members?cursor={}", text(&listed["next_cursor"]));
    assert_eq!(send(&dev, "GET", &elsewhere, &admin, None).await.status, 400, "A-03: another list's cursor");
}

/// Two administrators who take it from each other at the same moment: one stays.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_two_administrators_race() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    let me = text(&send(&dev, "GET", "/api/v1/auth/me", &admin, None).await.json()["id"]).to_owned();
    let other = user(&dev, &admin, "other", "administrator").await;
    let token = login(&dev, "other").await;
    let body = json!({"role": "member"});
    {
        let (mine, theirs) = (format!("/api/v1/users/{other}"), format!("/api/v1/users/{me}"));
        let (a, b) = tokio::join!(
            send(&dev, "PATCH", &mine, &admin, Some(&body)),
            send(&dev, "PATCH", &theirs, &token, Some(&body)),
        );
        let left = "select count(*) from users where role = 'administrator' and disabled_at is null";
        assert_eq!(dev.value("gmah_org_paris", left).await, "1", "{a:?} {b:?}");
        // Whoever came second is refused, or no administrator any more by then, or logged out.
        assert_eq!([a.status, b.status].iter().filter(|s| **s == 200).count(), 1, "{a:?} {b:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_when_they_should() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    user(&dev, &admin, "ada", "member").await;
    let (home, work) = (login(&dev, "ada").await, login(&dev, "ada").await);
    let listed = send(&dev, "GET", "/api/v1/auth/sessions", &home, None).await.json();
    let items = listed["items"].as_array().expect("sessions").clone();
    assert_eq!(items.len(), 2);
    assert_eq!(items.iter().filter(|s| s["current"] == true).count(), 1);
    assert_eq!(items[0]["address"], "127.0.0.1");
    let away = items.iter().find(|s| s["current"] == false).expect("the other");
    let path = format!("/api/v1/auth/sessions/{}", text(&away["id"]));
    assert_eq!(send(&dev, "DELETE", &path, &admin, None).await.status, 404, "not somebody else's");
    assert_eq!(send(&dev, "DELETE", &path, &home, None).await.status, 204);
    assert_eq!(send(&dev, "GET", "/api/v1/auth/me", &work, None).await.status, 401);

    // A password that changes ends the others.
    let work = login(&dev, "ada").await;
    let change = |old: &str, new: &str| json!({"current_password": old, "new_password": new});
    for (body, expected) in [
        (change("wrong", "another horse"), code(401, "bad_credentials")),
        (change("correct horse", "short"), code(422, "invalid")),
    ] {
        assert_eq!(refused(&send(&dev, "POST", "/api/v1/auth/password", &home, Some(&body)).await), expected);
    }
    let body = change("correct horse", "another horse");
    assert_eq!(send(&dev, "POST", "/api/v1/auth/password", &home, Some(&body)).await.status, 204);
    assert_eq!(send(&dev, "GET", "/api/v1/auth/me", &home, None).await.status, 200);
    assert_eq!(send(&dev, "GET", "/api/v1/auth/me", &work, None).await.status, 401);

    // A refresh token that comes a second time, long after: somebody has a copy.
    let body = json!({"email": "ada@paris.example", "password": "another horse"});
    let first = dev.post("paris", "/api/v1/auth/login", &[], &body).await.json();
    let exchange = async |token: &str| {
        dev.post("paris", "/api/v1/auth/refresh", &[], &json!({"refresh_token": token})).await
    };
    let stolen = text(&first["refresh_token"]).to_owned();
    let second = exchange(&stolen).await.json();
    assert_eq!(exchange(&stolen).await.status, 401, "used");
    let token = text(&second["access_token"]).to_owned();
    assert_eq!(
        send(&dev, "GET", "/api/v1/auth/me", &token, None).await.status,
        200,
        "asked twice in a moment"
    );
    dev.execute("gmah_org_paris", "update refresh_tokens_used set used_at = now() - interval '1 minute'")
        .await;
    assert_eq!(exchange(&stolen).await.status, 401);
    assert_eq!(send(&dev, "GET", "/api/v1/auth/me", &token, None).await.status, 401, "all of it is over");
    assert_eq!(exchange(text(&second["refresh_token"])).await.status, 401);

    // And a suspension ends all.
    assert!(dev.cli(&["tenant", "suspend", "paris"]).await.status.success());
    assert!(dev.cli(&["tenant", "resume", "paris"]).await.status.success());
    let patience = std::time::Duration::from_secs(5);
    let again = || async { dev.get("paris", "/api/v1/tenant").await.status };
    crate::harness::eventually("resumed", patience, again, |s| *s == 200).await;
    for token in [&admin, &home] {
        assert_eq!(send(&dev, "GET", "/api/v1/auth/me", token, None).await.status, 401);
    }
    dev.login("paris").await;
}

/// forty guesses at one account; an account that does not exist looks the same; nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a09_guessing_is_slowed_down_where_it_happens() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    user(&dev, &admin, "ada", "member").await;
    // Also where its owner has logged in before.
    user(&dev, &admin, "eva", "member").await;
    login(&dev, "eva").await;
    for account in ["ada@paris.example", "nobody@paris.example", "eva@paris.example"] {
        let mut seen = Vec::new();
        for n in 0..14 {
            let body = json!({"email": account, "password": format!("guess {n}")});
            let answer = dev.post("paris", "/api/v1/auth/login", &[], &body).await;
            assert_eq!(answer.status == 429, answer.header("retry-after").is_some());
            seen.push(answer.status);
        }
        assert_eq!(seen, [&[401; 10][..], &[429; 4]].concat(), "{account}");
    }
    // The right password neither, and so it says nothing.
    let body = json!({"email": "ada@paris.example", "password": "correct horse"});
    assert_eq!(
        refused(&dev.post("paris", "/api/v1/auth/login", &[], &body).await),
        code(429, "too_many_attempts")
    );
    dev.login("paris").await;
    dev.login("lyon").await;
    let body = json!({"email": "ada@paris.example", "password": "x"});
    assert_eq!(
        dev.post("lyon", "/api/v1/auth/login", &[], &body).await.status,
        401,
        "A-10: her namesake elsewhere"
    );
}

/// From wherever on this machine: one account from a hundred addresses, and more accounts than one address may try, whatever
/// it says of where it comes from.
#[tokio::test(flavor = "multi_thread")]
async fn a09_addresses_are_those_of_connections() {
    let dev = Dev::start().await;
    let admin = dev.login("paris").await;
    user(&dev, &admin, "ada", "member").await;
    let hosts = [("paris", dev.host("paris")), ("lyon", dev.host("lyon"))];
    let from = |slug: &'static str, last: u8, email: String, password: &'static str, said: String| {
        let (dev, hosts) = (&dev, &hosts);
        async move {
            let host = &hosts.iter().find(|(s, _)| *s == slug).expect("known").1;
            let socket = tokio::net::TcpSocket::new_v4().expect("socket");
            socket.bind(std::net::SocketAddr::from(([127, 0, 1, last], 0))).expect("bound");
            let tcp = socket.connect(dev.client.address()).await.expect("connected");
            let mut stream = dev.client.over(tcp, host).await.expect("handshake");
            let body = json!({"email": email, "password": password}).to_string();
            let headers = [("X-Forwarded-For", said.as_str()), ("Forwarded", "for=192.0.2.9")];
            let bytes = request("POST", host, "/api/v1/auth/login", &headers, Some(&body));
            exchange(&mut stream, &bytes).await.status
        }
    };
    // A place is free again each half minute, and a machine may be busy.
    let mut seen = Vec::new();
    for n in 0..200 {
        seen.push(
            from("paris", n % 100 + 1, "ada@paris.example".into(), "guess", format!("192.0.2.{n}")).await,
        );
    }
    let wrong = seen.iter().filter(|s| **s == 401).count();
    assert!((10..=14).contains(&wrong) && seen[..10] == [401; 10], "{wrong}: {seen:?}");
    assert!(seen.iter().all(|s| matches!(s, 401 | 429)), "{seen:?}");
    // As many accounts as there may be failures of one address; a place is free again each two seconds.
    let began = std::time::Instant::now();
    let mut seen = Vec::new();
    for n in 0..200 {
        seen.push(
            from("paris", 200, format!("nobody{n}@paris.example"), "guess", format!("192.0.2.{n}")).await,
        );
    }
    let more = began.elapsed().as_secs() / 2 + 1;
    let wrong = seen.iter().filter(|s| **s == 401).count() as u64;
    assert!((100..=100 + more).contains(&wrong) && seen[..100] == [401; 100], "{wrong}: {seen:?}");
    assert!(seen.iter().all(|s| matches!(s, 401 | 429)), "{seen:?}");
    // Neighbours, and the same address elsewhere, are let in.
    user(&dev, &admin, "eva", "member").await;
    assert_eq!(from("paris", 201, "eva@paris.example".into(), "correct horse", String::new()).await, 200);
    assert_eq!(from("lyon", 200, "nobody@lyon.example".into(), "guess", String::new()).await, 401);
}

/// What changes while a request is on its way counts for it: a password that was right a moment ago, rights that the
/// caller had.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_meanwhile_counts() {
    let dev = std::sync::Arc::new(Dev::start().await);
    let admin = dev.login("paris").await;
    let id = user(&dev, &admin, "mallory", "administrator").await;
    let waiting = "select count(*) from pg_stat_activity where application_name = 'gmah api' and wait_event_type = 'Lock'";
    let patience = std::time::Duration::from_secs(5);

    // A login, while the password is changed.
    let owner = dev.superuser("gmah_org_paris").await;
    owner
        .batch_execute("begin; update users set password_hash = null where email = 'mallory@paris.example'")
        .await
        .expect("changed");
    let login = {
        let dev = dev.clone();
        gmah_shared::tasks::detach("login", async move {
            let body = json!({"email": "mallory@paris.example", "password": "correct horse"});
            dev.post("paris", "/api/v1/auth/login", &[], &body).await
        })
    };
    let seen = || dev.value("postgres", waiting);
    crate::harness::eventually("it waits", patience, seen, |n| n == "1").await;
    owner.batch_execute("commit").await.expect("committed");
    assert_eq!(refused(&login.await.expect("joined")), code(401, "bad_credentials"));

    // A new administrator, while the one who makes it stops being one.
    dev.execute(
        "gmah_org_paris",
        "update users m set password_hash = a.password_hash from users a
         where m.email = 'mallory@paris.example' and a.email = 'admin@paris.example'",
    )
    .await;
    let tenants = dev.info["tenants"].as_array().expect("tenants").clone();
    let password =
        tenants.iter().find(|t| t["slug"] == "paris").map(|t| text(&t["admin_password"]).to_owned());
    let token = dev.login_as("paris", "mallory@paris.example", &password.expect("paris")).await;
    owner.batch_execute("begin; select pg_advisory_xact_lock(107117253750387)").await.expect("locked");
    let making = {
        let (dev, token) = (dev.clone(), token.clone());
        gmah_shared::tasks::detach("make", async move {
            let body = json!({"email": "second@paris.example", "name": "Second", "role": "administrator"});
            send(&dev, "POST", "/api/v1/users", &token, Some(&body)).await
        })
    };
    crate::harness::eventually("it waits", patience, seen, |n| n == "1").await;
    owner
        .batch_execute(&format!("update users set role = 'member' where id = '{id}'; commit"))
        .await
        .expect("demoted");
    assert_eq!(refused(&making.await.expect("joined")), code(403, "forbidden"));

    // And who cannot log in is nobody's last administrator.
    let body = json!({"email": "third@paris.example", "name": "Third", "role": "administrator"});
    assert_eq!(send(&dev, "POST", "/api/v1/users", &admin, Some(&body)).await.status, 201);
    let me = text(&send(&dev, "GET", "/api/v1/auth/me", &admin, None).await.json()["id"]).to_owned();
    let seen =
        send(&dev, "PATCH", &format!("/api/v1/users/{me}"), &admin, Some(&json!({"disabled": true}))).await;
    assert_eq!(refused(&seen), code(409, "last_administrator"));
}
