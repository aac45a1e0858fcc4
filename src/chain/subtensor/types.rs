//! Which types of a program's description can be taken apart: a node may describe types that hold themselves, or nothing
//! many times over, on which a decoder would never end.

use subxt::ext::scale_type_resolver::{
    FieldIter, PathIter, ResolvedTypeVisitor, TypeResolver, UnhandledKind, VariantIter,
};

/// Types that lie deeper in each other are refused; those of the real chain come to 20 or so.
const MAX_DEPTH: usize = 64;

/// Values with more parts, not counting the items of lists, are refused.
const MAX_PARTS: u64 = 1 << 20;

/// The types that can be taken apart.
pub(super) struct Finite(Vec<bool>);

impl Finite {
    /// Of all types of a description, whose numbers are below `len`.
    pub(super) fn of(types: &impl TypeResolver<TypeId = u32>, len: usize) -> Self {
        let shapes: Vec<Shape> = (0..len as u32).map(|id| types.resolve_type(id, Parts).unwrap_or_default()).collect();
        // From the innermost to the outermost: a type that holds itself never has its turn.
        let mut parts: Vec<Option<u64>> = vec![None; len];
        for _ in 0..MAX_DEPTH {
            let next: Vec<(usize, u64)> = (shapes.iter().enumerate())
                .filter(|(id, _)| parts[*id].is_none())
                .filter_map(|(id, shape)| Some((id, num_parts(shape, &parts)?)))
                .collect();
            if next.is_empty() {
                break;
            }
            for (id, num_parts) in next {
                parts[id] = Some(num_parts);
            }
        }
        Self(parts.into_iter().map(|parts| parts.is_some_and(|parts| parts <= MAX_PARTS)).collect())
    }

    /// Whether a type is one of them.
    pub(super) fn has(&self, id: u32) -> bool {
        self.0.get(id as usize).copied().unwrap_or(false)
    }
}

/// What a value of a type is made of: one of several, each of some types so many times.
type Shape = Vec<Vec<(u32, u64)>>;

/// `None` as long as it is not known of all inner types. A number of a type that is not described is an error to whoever
/// reads it.
fn num_parts(shape: &Shape, known: &[Option<u64>]) -> Option<u64> {
    let mut most = 0;
    for fields in shape {
        let mut sum: u64 = 0;
        for &(id, times) in fields {
            let inner = known.get(id as usize).copied().unwrap_or(Some(1))?;
            sum = sum.saturating_add(inner.saturating_mul(times));
        }
        most = most.max(sum);
    }
    Some(most.saturating_add(1))
}

/// Asks for the shape of a type.
struct Parts;

impl<'types> ResolvedTypeVisitor<'types> for Parts {
    type TypeId = u32;
    type Value = Shape;

    fn visit_unhandled(self, _: UnhandledKind) -> Shape {
        Vec::new()
    }

    fn visit_composite<P: PathIter<'types>, F: FieldIter<'types, u32>>(self, _: P, fields: F) -> Shape {
        vec![fields.map(|field| (field.id, 1)).collect()]
    }

    fn visit_variant<P: PathIter<'types>, F: FieldIter<'types, u32>, V: VariantIter<'types, F>>(
        self,
        _: P,
        variants: V,
    ) -> Shape {
        variants.map(|variant| variant.fields.map(|field| (field.id, 1)).collect()).collect()
    }

    fn visit_sequence<P: PathIter<'types>>(self, _: P, id: u32) -> Shape {
        vec![vec![(id, 1)]]
    }

    fn visit_array(self, id: u32, len: usize) -> Shape {
        vec![vec![(id, len as u64)]]
    }

    fn visit_tuple<T: ExactSizeIterator<Item = u32>>(self, ids: T) -> Shape {
        vec![ids.map(|id| (id, 1)).collect()]
    }

    fn visit_compact(self, id: u32) -> Shape {
        vec![vec![(id, 1)]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tuples of others, but the last of lists.
    struct Types(Vec<Vec<u32>>);

    impl TypeResolver for Types {
        type TypeId = u32;
        type Error = String;

        fn resolve_type<'this, V: ResolvedTypeVisitor<'this, TypeId = u32>>(
            &'this self,
            id: u32,
            visitor: V,
        ) -> Result<V::Value, String> {
            let inner = &self.0[id as usize];
            Ok(match inner.as_slice() {
                &[only] => visitor.visit_array(only, 2),
                _ => visitor.visit_tuple(inner.iter().copied()),
            })
        }
    }

    #[test]
    fn types_that_hold_themselves_or_too_much_are_found() {
        // The empty tuple, one of two of it, one of itself, one of that, two of each other, one of an unknown type.
        let types = Types(vec![vec![], vec![0, 0], vec![2, 0], vec![2], vec![5], vec![4], vec![1_000]]);
        let finite = Finite::of(&types, 7);
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6, 7].map(|id| finite.has(id)),
            [true, true, false, false, false, false, true, false]
        );
        // Each is twice the one before: the empty tuple 2^n times.
        let doubling = Types((0..100_u32).map(|id| id.checked_sub(1).into_iter().collect()).collect());
        let finite = Finite::of(&doubling, 100);
        let num_finite = (0..100).filter(|&id| finite.has(id)).count();
        assert_eq!(num_finite, 20);
        // Each of the one before, the other of nothing: deep alone.
        let deep =
            Types((0..100_u32).map(|id| id.checked_sub(1).map_or_else(Vec::new, |below| vec![below, 1_000])).collect());
        let finite = Finite::of(&deep, 100);
        assert_eq!((0..100).filter(|&id| finite.has(id)).count(), MAX_DEPTH);
    }
}
