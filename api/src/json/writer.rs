//! JSON (RFC 8259) as `serde_json` writes it, byte for byte, with a quarter of the work for what answers are made of: short
//! texts in which nothing is to be escaped. What is not of that kind is left to `serde_json`.

use std::io;

use serde::ser::{
    Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use serde_json::Error;

/// Writes values behind one another: into bytes that are there already, so that whether there is room is asked once for each.
pub(super) struct Writer {
    out: Vec<u8>,
    at: usize,
}

impl Writer {
    /// Into nothing yet, with room for so many bytes.
    pub(super) fn with_capacity(room: usize) -> Self {
        Self { out: vec![0; room], at: 0 }
    }

    /// What was written.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.out.truncate(self.at);
        self.out
    }

    /// So many bytes to be written to.
    #[inline]
    fn room(&mut self, length: usize) -> &mut [u8] {
        let (from, to) = (self.at, self.at + length);
        if to > self.out.len() {
            self.grow(to);
        }
        self.at = to;
        &mut self.out[from..to]
    }

    #[cold]
    fn grow(&mut self, least: usize) {
        self.out.resize(least.max(2 * self.out.len()), 0);
    }

    #[inline]
    fn push(&mut self, text: &[u8]) {
        self.room(text.len()).copy_from_slice(text);
    }

    fn integer(&mut self, number: impl itoa::Integer) -> Result<(), Error> {
        self.push(itoa::Buffer::new().format(number).as_bytes());
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        if !is_plain(text.as_bytes()) {
            return self.otherwise(text);
        }
        if let [first, between @ .., last] = self.room(text.len() + 2) {
            (*first, *last) = (b'"', b'"');
            between.copy_from_slice(text.as_bytes());
        }
        Ok(())
    }

    /// Left to `serde_json`.
    #[cold]
    fn otherwise(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        serde_json::to_writer(self, value)
    }

    /// A member's name, with the comma before it. With a name that is known when this is compiled hardly more than a copy.
    #[inline(always)]
    fn name(&mut self, name: &'static str, is_first: bool) -> Result<(), Error> {
        if !is_first {
            self.push(b",");
        }
        if !is_plain(name.as_bytes()) {
            self.otherwise(name)?;
            self.push(b":");
            return Ok(());
        }
        if let [first, between @ .., last, colon] = self.room(name.len() + 3) {
            (*first, *last, *colon) = (b'"', b'"', b':');
            between.copy_from_slice(name.as_bytes());
        }
        Ok(())
    }

    /// `{"NAME":`, and what closes it.
    fn variant(&mut self, name: &str, opens: &[u8], closes: &'static [u8]) -> Result<Several<'_>, Error> {
        self.push(b"{");
        self.text(name)?;
        self.push(b":");
        self.push(opens);
        Ok(Several { to: self, is_first: true, closes })
    }

    fn several(&mut self, opens: u8, closes: &'static [u8]) -> Several<'_> {
        self.push(&[opens]);
        Several { to: self, is_first: true, closes }
    }

    /// A key: a text, or what has a form of one.
    fn key(&mut self, key: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        let at = self.at;
        key.serialize(&mut *self)?;
        match self.out.get(at) {
            Some(b'"') => self.push(b":"),
            // A number or a truth; a number that is none was written as null.
            Some(b'-' | b'0'..=b'9' | b't' | b'f') => {
                self.push(b" \":");
                self.out.copy_within(at..self.at - 3, at + 1);
                self.out[at] = b'"';
            }
            _ => return Err(Error::custom("key must be a string")),
        }
        Ok(())
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether nothing is to be escaped: no quote, no backslash, no control character. Eight bytes at a time.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk::<8>() else {
        let mut padded = [b' '; 8];
        padded[..text.len()].copy_from_slice(text);
        return to_be_escaped(padded) == 0;
    };
    let (chunks, _) = text.as_chunks::<8>();
    let found = chunks.iter().fold(to_be_escaped(*last), |found, chunk| found | to_be_escaped(*chunk));
    found == 0
}

/// Not zero if any of them is to be escaped ("Bit Twiddling Hacks", determine if a word has a byte less than n).
#[inline]
fn to_be_escaped(bytes: [u8; 8]) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let word = u64::from_ne_bytes(bytes);
    let below = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | is(b'"') | is(b'\\')) & (ONES << 7)
}

impl<'a> Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Several<'a>;
    type SerializeTuple = Several<'a>;
    type SerializeTupleStruct = Several<'a>;
    type SerializeTupleVariant = Several<'a>;
    type SerializeMap = Several<'a>;
    type SerializeStruct = Several<'a>;
    type SerializeStructVariant = Several<'a>;

    fn serialize_bool(self, v: bool) -> Result<(), Error> {
        self.push(if v { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_i8(self, v: i8) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_i16(self, v: i16) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_i32(self, v: i32) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_i64(self, v: i64) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_i128(self, v: i128) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_u8(self, v: u8) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_u16(self, v: u16) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_u32(self, v: u32) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_u64(self, v: u64) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_u128(self, v: u128) -> Result<(), Error> {
        self.integer(v)
    }

    fn serialize_f32(self, v: f32) -> Result<(), Error> {
        self.otherwise(&v)
    }

    fn serialize_f64(self, v: f64) -> Result<(), Error> {
        self.otherwise(&v)
    }

    fn serialize_char(self, v: char) -> Result<(), Error> {
        self.text(v.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, v: &str) -> Result<(), Error> {
        self.text(v)
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<(), Error> {
        v.serialize(self)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.push(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Error> {
        self.text(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        let within = self.variant(variant, b"", b"}")?;
        value.serialize(&mut *within.to)?;
        within.close()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Several<'a>, Error> {
        Ok(self.several(b'[', b"]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Several<'a>, Error> {
        Ok(self.several(b'[', b"]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Several<'a>, Error> {
        Ok(self.several(b'[', b"]"))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Several<'a>, Error> {
        self.variant(variant, b"[", b"]}")
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Several<'a>, Error> {
        Ok(self.several(b'{', b"}"))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Several<'a>, Error> {
        Ok(self.several(b'{', b"}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Several<'a>, Error> {
        self.variant(variant, b"{", b"}}")
    }
}

/// Elements or members, one after the other.
pub(super) struct Several<'a> {
    to: &'a mut Writer,
    is_first: bool,
    closes: &'static [u8],
}

impl Several<'_> {
    fn comma(&mut self) {
        if !std::mem::replace(&mut self.is_first, false) {
            self.to.push(b",");
        }
    }

    fn element(&mut self, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.comma();
        value.serialize(&mut *self.to)
    }

    #[inline(always)]
    fn member(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.to.name(name, std::mem::replace(&mut self.is_first, false))?;
        value.serialize(&mut *self.to)
    }

    fn close(self) -> Result<(), Error> {
        self.to.push(self.closes);
        Ok(())
    }
}

impl SerializeMap for Several<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.comma();
        self.to.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.to)
    }

    fn end(self) -> Result<(), Error> {
        self.close()
    }
}

/// The same for what differs in its names alone.
macro_rules! one_by_one {
    ($($kind:ident $takes:ident)*) => {$(
        impl $kind for Several<'_> {
            type Ok = ();
            type Error = Error;

            fn $takes<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.element(value)
            }

            fn end(self) -> Result<(), Error> {
                self.close()
            }
        }
    )*};
}

macro_rules! by_name {
    ($($kind:ident)*) => {$(
        impl $kind for Several<'_> {
            type Ok = ();
            type Error = Error;

            #[inline(always)]
            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
                self.member(name, value)
            }

            fn end(self) -> Result<(), Error> {
                self.close()
            }
        }
    )*};
}

one_by_one! {
    SerializeSeq serialize_element
    SerializeTuple serialize_element
    SerializeTupleStruct serialize_field
    SerializeTupleVariant serialize_field
}
by_name! { SerializeStruct SerializeStructVariant }

#[cfg(test)]
mod tests;
