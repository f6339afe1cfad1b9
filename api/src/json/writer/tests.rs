use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Serialize;
use serde_json::Value;

use super::*;

fn written(value: &impl Serialize) -> Result<String, Error> {
    let mut writer = Writer::with_capacity(0);
    value.serialize(&mut writer)?;
    Ok(String::from_utf8(writer.into_bytes()).expect("UTF-8"))
}

fn same(value: &impl Serialize) {
    assert_eq!(written(value).expect("JSON"), serde_json::to_string(value).expect("JSON"));
}

#[derive(Serialize)]
struct Nothing;
#[derive(Serialize)]
struct Wrapped(i64);
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    One,
    Other,
}

/// A map by numbers that have no order.
struct Entries<'a>(&'a [f64]);
impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|key| (key, ())))
    }
}

/// Bytes as such.
struct Raw<'a>(&'a [u8]);
impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[derive(Serialize)]
struct Pair(char, u128);
#[derive(Serialize)]
enum Kinds<'a> {
    Unit,
    One(Option<&'a str>),
    Two(f64, f32),
    Named { a: bool, b: (), c: Pair },
}

#[test]
fn every_kind_is_written_as_serde_json_does() {
    same(&(Nothing, Wrapped(i64::MIN), Pair('\u{7}', u128::MAX), i128::MIN, [u8::MAX; 3]));
    same(&(i8::MIN, i16::MIN, i32::MIN, u16::MAX, u32::MAX, u64::MAX, f32::MIN, f64::MAX, 0.1, -0.0));
    same(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-7, 1e21]);
    same(&[Kinds::Unit, Kinds::One(None), Kinds::One(Some("\"")), Kinds::Two(1.0, 2.5)]);
    same(&Kinds::Named { a: true, b: (), c: Pair('é', 0) });
    same(&(Vec::<u8>::new(), BTreeMap::<&str, ()>::new(), Some(Some(1)), ""));
    same(&uuid::Uuid::now_v7());
    same(&(Raw(b""), Raw(&[0, 255])));
}

#[test]
fn keys_are_texts() {
    same(&BTreeMap::from([("a\nb", 1), ("", 2), ("ü", 3)]));
    same(&BTreeMap::from([(-1, 'a'), (20, 'b')]));
    same(&BTreeMap::from([(true, 1), (false, 2)]));
    same(&BTreeMap::from([('x', 1), ('"', 2)]));
    same(&BTreeMap::from([(i128::MIN, 1), (i128::MAX, 2)]));
    same(&BTreeMap::from([(Named::One, 1), (Named::Other, 2)]));
    same(&Entries(&[1.5, -0.0, 1e300]));
    for refused in [
        written(&BTreeMap::from([((), 1)])),
        written(&BTreeMap::from([([1], 1)])),
        written(&BTreeMap::from([(None::<u8>, 1)])),
        written(&Entries(&[f64::NAN])),
    ] {
        assert!(refused.is_err());
    }
}

#[test]
fn what_fails_in_its_middle_fails() {
    struct Never;
    impl Serialize for Never {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("never"))
        }
    }
    let said = written(&(1, [Some(Never)])).expect_err("an error");
    assert_eq!(said.to_string(), "never");
}

#[test]
fn whatever_is_to_be_escaped_is_found_at_every_place() {
    for code in 0..=0xff_u32 {
        let one = char::from_u32(code).expect("a character");
        for before in 0..20 {
            for after in [0, 1, 7, 8, 9] {
                same(&format!("{}{one}{}", "a".repeat(before), "z".repeat(after)));
            }
        }
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_is_written_as_serde_json_does(value in values()) {
        same(&value);
    }
}
