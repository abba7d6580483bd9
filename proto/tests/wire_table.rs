//! The compiled descriptors say exactly what `data/kvproto.tsv` says: no row is missing and none is
//! added.
//!
//! The table is the record of facts. Descriptors are written out as rows of the same form, and the
//! two sets are compared.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const TABLE: &str = include_str!("data/kvproto.tsv");

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(tikv_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set")
}

/// The rows of the table by their kind, the first column.
fn rows_of_table() -> BTreeMap<String, BTreeSet<String>> {
    let rows = TABLE.lines().filter(|line| !line.starts_with('#'));
    let mut by_kind = BTreeMap::<String, BTreeSet<String>>::new();
    for row in rows {
        let kind = row.split('\t').next().unwrap_or_default();
        let new = by_kind
            .entry(kind.to_owned())
            .or_default()
            .insert(row.to_owned());
        assert!(new, "the table holds a row twice: {row}");
    }
    by_kind
}

/// The descriptors, written as rows of the table.
#[derive(Default)]
struct Rows {
    by_kind: BTreeMap<String, BTreeSet<String>>,
}

impl Rows {
    fn of(set: &FileDescriptorSet) -> Self {
        let mut rows = Self::default();
        for file in &set.file {
            let package = file.package();
            for service in &file.service {
                rows.service(package, service);
            }
            for message in &file.message_type {
                rows.message(package, message);
            }
            for enumeration in &file.enum_type {
                rows.enumeration(package, enumeration);
            }
            assert!(file.extension.is_empty(), "{package} has extensions");
        }
        rows
    }

    fn push<const N: usize>(&mut self, columns: [&str; N]) {
        let row = columns.join("\t");
        let new = self
            .by_kind
            .entry(columns[0].to_owned())
            .or_default()
            .insert(row.clone());
        assert!(new, "the descriptors hold a row twice: {row}");
    }

    fn service(&mut self, package: &str, service: &ServiceDescriptorProto) {
        let name = format!("{package}.{}", service.name());
        for method in &service.method {
            let side = |streaming| if streaming { "stream" } else { "unary" };
            let deprecated = method.options.as_ref().is_some_and(|o| o.deprecated());
            self.push([
                "rpc",
                &name,
                method.name(),
                full_name(method.input_type()),
                full_name(method.output_type()),
                side(method.client_streaming()),
                side(method.server_streaming()),
                if deprecated { "deprecated" } else { "" },
            ]);
        }
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let map_entry = message.options.as_ref().is_some_and(|o| o.map_entry());
        for field in &message.field {
            self.field(&name, message, field, map_entry);
        }
        if message.field.is_empty() {
            self.push(["empty", &name]);
        }
        for range in &message.reserved_range {
            let (start, end) = (range.start().to_string(), range.end().to_string());
            self.push(["reserved", &name, &start, &end]);
        }
        for nested in &message.nested_type {
            self.message(&name, nested);
        }
        for nested in &message.enum_type {
            self.enumeration(&name, nested);
        }
        assert!(
            message.extension.is_empty()
                && message.extension_range.is_empty()
                && message.reserved_name.is_empty(),
            "{name} declares what the table has no rows for"
        );
    }

    fn field(
        &mut self,
        name: &str,
        message: &DescriptorProto,
        field: &FieldDescriptorProto,
        map_entry: bool,
    ) {
        let options = field.options.clone().unwrap_or_default();
        let note = match (map_entry, options.deprecated()) {
            (true, _) => "map_entry",
            (false, true) => "deprecated",
            (false, false) => "",
        };
        let oneof = field.oneof_index.map_or("", |index| {
            message.oneof_decl[usize::try_from(index).expect("an index")].name()
        });
        assert!(
            !field.proto3_optional() && options.packed.is_none() && field.default_value.is_none(),
            "{name}.{} declares what the table has no column for",
            field.name()
        );
        let label = match field.label() {
            Label::Optional => "optional",
            Label::Repeated => "repeated",
            Label::Required => "required",
        };
        self.push([
            "field",
            name,
            &field.number().to_string(),
            label,
            type_name(field),
            field.name(),
            oneof,
            note,
        ]);
    }

    fn enumeration(&mut self, scope: &str, enumeration: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", enumeration.name());
        for value in &enumeration.value {
            self.push(["value", &name, &value.number().to_string(), value.name()]);
        }
        assert!(
            enumeration.reserved_range.is_empty() && enumeration.reserved_name.is_empty(),
            "{name} reserves what the table has no rows for"
        );
    }
}

/// A descriptor writes full names with a leading dot.
fn full_name(name: &str) -> &str {
    name.strip_prefix('.').unwrap_or(name)
}

fn type_name(field: &FieldDescriptorProto) -> &str {
    match field.r#type() {
        Type::Double => "double",
        Type::Float => "float",
        Type::Int64 => "int64",
        Type::Uint64 => "uint64",
        Type::Int32 => "int32",
        Type::Fixed64 => "fixed64",
        Type::Fixed32 => "fixed32",
        Type::Bool => "bool",
        Type::String => "string",
        Type::Group => "group",
        Type::Bytes => "bytes",
        Type::Uint32 => "uint32",
        Type::Sfixed32 => "sfixed32",
        Type::Sfixed64 => "sfixed64",
        Type::Sint32 => "sint32",
        Type::Sint64 => "sint64",
        Type::Message | Type::Enum => full_name(field.type_name()),
    }
}

/// Compares the rows of one kind both ways and lists all that differ.
fn assert_same(kind: &str) {
    let none = BTreeSet::new();
    let table = rows_of_table();
    let compiled = Rows::of(&descriptors()).by_kind;
    let table = table.get(kind).expect("rows of this kind in the table");
    let compiled = compiled.get(kind).unwrap_or(&none);

    let missing: Vec<_> = table.difference(compiled).collect();
    let extra: Vec<_> = compiled.difference(table).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "in the table only: {missing:#?}\ncompiled only: {extra:#?}"
    );
}

#[test]
fn rpcs_are_those_of_the_table() {
    assert_same("rpc");
}

#[test]
fn fields_are_those_of_the_table() {
    assert_same("field");
}

#[test]
fn reserved_ranges_are_those_of_the_table() {
    assert_same("reserved");
}

#[test]
fn enum_values_are_those_of_the_table() {
    assert_same("value");
}

#[test]
fn empty_messages_are_those_of_the_table() {
    assert_same("empty");
}

#[test]
fn both_sides_have_the_same_kinds_of_rows() {
    let table = rows_of_table();
    let compiled = Rows::of(&descriptors()).by_kind;
    assert!(table.keys().eq(compiled.keys()));
    assert!(
        table
            .keys()
            .eq(["empty", "field", "reserved", "rpc", "value"])
    );
}

/// Every file is proto3 and holds the package that it is named after; no package has a second file.
#[test]
fn files_are_named_after_their_packages() {
    for file in &descriptors().file {
        assert_eq!(file.syntax(), "proto3", "{}", file.name());
        assert_eq!(file.name(), format!("{}.proto", file.package()));
        assert!(file.source_code_info.is_none());
    }
}
