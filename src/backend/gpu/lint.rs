//! What `build.rs` demands of a shader: naga's validation, and what browsers reject beyond it.

use super::naga::{
    self, AddressSpace, Expression, Handle, Module, Scalar, ScalarKind, Statement, TypeInner, VectorSize,
};

/// What WebGPU grants everywhere, by its default limits.
const MAX_INVOCATIONS: u32 = 256;
const MAX_WORKGROUP_BYTES: u32 = 16 << 10;
const MAX_STORAGE_BUFFERS: usize = 8;

/// What a variant for some adapters only may use beyond what browsers grant.
#[derive(Clone, Copy, Default)]
pub struct Extras {
    pub subgroups: bool,
    /// Words of 64 bits.
    pub pairs: bool,
    pub halves: bool,
    pub matrices: bool,
    /// One more buffer, for status words: a kernel does without where there is no room for them.
    pub status: bool,
}

/// Parses, validates and lints.
pub fn check(path: &str, wgsl: &str, extras: Extras) -> Result<Module, String> {
    use naga::valid::Capabilities;
    // `pack2x16float` and its like are every browser's.
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SHADER_FLOAT16, extras.halves);
    capabilities.set(Capabilities::SUBGROUP, extras.subgroups);
    capabilities.set(Capabilities::SHADER_INT64, extras.pairs);
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, extras.matrices);
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string_with_path(wgsl, path))?;
    let flags = naga::valid::ValidationFlags::all();
    let info = naga::valid::Validator::new(flags, capabilities)
        .validate(&module)
        .map_err(|e| e.emit_to_string_with_path(wgsl, path))?;
    let fault = |what: String| Err(format!("{path}: {what}"));

    if !extras.pairs
        && module.types.iter().any(|(_, t)| matches!(t.inner, TypeInner::Scalar(Scalar { width: 8, .. })))
    {
        return fault("64-bit numbers are not WebGPU's".into());
    }
    let storage = |g: &naga::GlobalVariable| matches!(g.space, AddressSpace::Storage { .. });
    let buffers = module.global_variables.iter().filter(|(_, g)| storage(g)).count();
    if buffers > MAX_STORAGE_BUFFERS + usize::from(extras.status) {
        return fault(format!("{buffers} storage buffers; browsers grant {MAX_STORAGE_BUFFERS}"));
    }
    for (index, entry) in module.entry_points.iter().enumerate() {
        let [x, y, z] = entry.workgroup_size;
        if x * y * z > MAX_INVOCATIONS {
            return fault(format!(
                "{}: {x}×{y}×{z} invocations; browsers grant {MAX_INVOCATIONS}",
                entry.name
            ));
        }
        let used = info.get_entry_point(index);
        let bytes: u32 = (module.global_variables.iter())
            .filter(|(handle, g)| g.space == AddressSpace::WorkGroup && !used[*handle].is_empty())
            .map(|(_, g)| module.types[g.ty].inner.size(module.to_ctx()).next_multiple_of(16))
            .sum();
        if bytes > MAX_WORKGROUP_BYTES {
            return fault(format!(
                "{}: {bytes} bytes of workgroup memory; browsers grant {MAX_WORKGROUP_BYTES}",
                entry.name
            ));
        }
        if let Err(what) = Uniformity::check(&module, &entry.function) {
            return fault(format!("{}: {what}; browsers demand uniform control flow there", entry.name));
        }
    }
    Ok(module)
}

/// Finds barriers that not all invocations of a workgroup are sure to meet. It follows local variables, which
/// naga's own analysis takes for uniform, and it is stricter than WGSL in one thing: what a function returns
/// counts as divergent.
struct Uniformity<'a> {
    module: &'a Module,
    function: &'a naga::Function,
    /// Local variables that may differ between invocations.
    divergent: Vec<Handle<naga::LocalVariable>>,
    /// Some invocations may have returned, left the loop or skipped a turn.
    strayed: bool,
    grew: bool,
}

impl<'a> Uniformity<'a> {
    fn check(module: &'a Module, function: &'a naga::Function) -> Result<(), &'static str> {
        let mut walk = Uniformity { module, function, divergent: vec![], strayed: false, grew: true };
        // Until no more variables turn out divergent: a loop may read what it writes further down.
        while std::mem::take(&mut walk.grew) {
            walk.strayed = false;
            let _ = walk.block(&function.body, false);
        }
        walk.strayed = false;
        walk.block(&function.body, false)
    }

    fn varies(&self, e: Handle<Expression>) -> bool {
        match &self.function.expressions[e] {
            Expression::FunctionArgument(i) => {
                use naga::{Binding, BuiltIn};
                let binding = self.function.arguments[*i as usize].binding.as_ref();
                !matches!(binding, Some(Binding::BuiltIn(BuiltIn::WorkGroupId | BuiltIn::NumWorkGroups)))
            }
            Expression::GlobalVariable(g) => !matches!(
                self.module.global_variables[*g].space,
                AddressSpace::Uniform | AddressSpace::Storage { access: naga::StorageAccess::LOAD }
            ),
            Expression::LocalVariable(v) => self.divergent.contains(v),
            Expression::WorkGroupUniformLoadResult { .. } => false,
            Expression::CallResult(_) | Expression::AtomicResult { .. } => true,
            Expression::Access { base, index } => self.varies(*base) || self.varies(*index),
            Expression::AccessIndex { base, .. } => self.varies(*base),
            Expression::Splat { value, .. } => self.varies(*value),
            Expression::Swizzle { vector, .. } => self.varies(*vector),
            Expression::Compose { components, .. } => components.iter().any(|&c| self.varies(c)),
            Expression::Load { pointer } => self.varies(*pointer),
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => self.varies(*expr),
            Expression::Binary { left, right, .. } => self.varies(*left) || self.varies(*right),
            Expression::Select { condition, accept, reject } => {
                self.varies(*condition) || self.varies(*accept) || self.varies(*reject)
            }
            Expression::Relational { argument, .. } => self.varies(*argument),
            Expression::Math { arg, arg1, arg2, arg3, .. } => {
                [Some(*arg), *arg1, *arg2, *arg3].into_iter().flatten().any(|a| self.varies(a))
            }
            Expression::ArrayLength(_)
            | Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_) => false,
            _ => true,
        }
    }

    fn local(&self, mut pointer: Handle<Expression>) -> Option<Handle<naga::LocalVariable>> {
        loop {
            match &self.function.expressions[pointer] {
                Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => pointer = *base,
                Expression::LocalVariable(v) => return Some(*v),
                _ => return None,
            }
        }
    }

    fn taint(&mut self, pointer: Handle<Expression>) {
        if let Some(v) = self.local(pointer)
            && !self.divergent.contains(&v)
        {
            self.divergent.push(v);
            self.grew = true;
        }
    }

    fn block(&mut self, block: &naga::Block, divergent: bool) -> Result<(), &'static str> {
        for statement in block {
            let apart = divergent || self.strayed;
            match statement {
                Statement::Block(inner) => self.block(inner, divergent)?,
                Statement::If { condition, accept, reject } => {
                    let inner = divergent || self.varies(*condition);
                    self.block(accept, inner)?;
                    self.block(reject, inner)?;
                }
                Statement::Switch { selector, cases } => {
                    let inner = divergent || self.varies(*selector);
                    for case in cases {
                        self.block(&case.body, inner)?;
                    }
                }
                Statement::Loop { body, continuing, break_if } => {
                    // A `break` in divergent flow makes later turns divergent; what comes after the loop is
                    // whole again, unless someone returned.
                    let before = self.strayed;
                    let stray = leaves(body, self, divergent);
                    self.strayed |= stray || break_if.is_some_and(|e| self.varies(e));
                    self.block(body, divergent)?;
                    self.block(continuing, divergent)?;
                    self.strayed = before || returns(body, self, divergent);
                }
                Statement::Return { .. } => self.strayed |= divergent,
                Statement::ControlBarrier(_) if apart => return Err("a barrier in divergent control flow"),
                Statement::WorkGroupUniformLoad { .. } if apart => {
                    return Err("workgroupUniformLoad in divergent control flow");
                }
                Statement::Store { pointer, value }
                    if apart || self.varies(*value) || self.varies(*pointer) =>
                {
                    self.taint(*pointer);
                }
                Statement::Call { arguments, .. } => {
                    // What a function may write through a pointer.
                    for &a in arguments {
                        if matches!(self.function.expressions[a], Expression::LocalVariable(_)) {
                            self.taint(a);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether some invocations may break out of this loop, or skip part of a turn, while others go on.
fn leaves(block: &naga::Block, walk: &Uniformity, divergent: bool) -> bool {
    any(block, walk, divergent, false, &|s, inner| {
        matches!(s, Statement::Break | Statement::Continue | Statement::Return { .. }) && inner
    })
}

fn returns(block: &naga::Block, walk: &Uniformity, divergent: bool) -> bool {
    any(block, walk, divergent, true, &|s, inner| matches!(s, Statement::Return { .. }) && inner)
}

fn any(
    block: &naga::Block,
    walk: &Uniformity,
    divergent: bool,
    into_loops: bool,
    test: &dyn Fn(&Statement, bool) -> bool,
) -> bool {
    block.iter().any(|s| {
        test(s, divergent)
            || match s {
                Statement::Block(b) => any(b, walk, divergent, into_loops, test),
                Statement::If { condition, accept, reject } => {
                    let inner = divergent || walk.varies(*condition);
                    any(accept, walk, inner, into_loops, test) || any(reject, walk, inner, into_loops, test)
                }
                Statement::Switch { selector, cases } => {
                    let inner = divergent || walk.varies(*selector);
                    cases.iter().any(|c| any(&c.body, walk, inner, into_loops, test))
                }
                Statement::Loop { body, .. } => {
                    let returned =
                        |s: &Statement, inner: bool| matches!(s, Statement::Return { .. }) && inner;
                    if into_loops {
                        any(body, walk, divergent, true, test)
                    } else {
                        any(body, walk, divergent, true, &returned)
                    }
                }
                _ => false,
            }
    })
}

/// A field of the Rust twin of a shader's `Params`.
#[allow(dead_code, reason = "for build.rs")]
#[derive(PartialEq)]
pub struct Field {
    pub name: String,
    pub ty: String,
}

/// The fields of the uniform `params`, where a shader has one.
#[allow(dead_code, reason = "for build.rs")]
pub fn params(path: &str, module: &Module) -> Result<Option<Vec<Field>>, String> {
    let Some((_, variable)) =
        module.global_variables.iter().find(|(_, g)| g.name.as_deref() == Some("params"))
    else {
        return Ok(None);
    };
    let TypeInner::Struct { members, .. } = &module.types[variable.ty].inner else {
        return Err(format!("{path}: params is not a struct"));
    };
    let (mut fields, mut end) = (vec![], 0);
    for member in members {
        let name = member.name.clone().unwrap_or_default();
        let inner = &module.types[member.ty].inner;
        let of = |s: &Scalar| match (s.kind, s.width) {
            (ScalarKind::Float, 4) => Ok("f32"),
            (ScalarKind::Sint, 4) => Ok("i32"),
            (ScalarKind::Uint, 4) => Ok("u32"),
            _ => Err(format!("{path}: the type of params.{name} has no Rust twin")),
        };
        let ty = match inner {
            TypeInner::Scalar(s) => of(s)?.to_string(),
            TypeInner::Vector { size, scalar } => format!("[{}; {}]", of(scalar)?, vector_len(*size)),
            TypeInner::Array { base, size: naga::ArraySize::Constant(n), .. } => {
                match &module.types[*base].inner {
                    TypeInner::Vector { size: VectorSize::Quad, scalar } => {
                        format!("[[{}; 4]; {n}]", of(scalar)?)
                    }
                    _ => return Err(format!("{path}: params.{name} must be of vec4s")),
                }
            }
            _ => return Err(format!("{path}: the type of params.{name} has no Rust twin")),
        };
        if member.offset != end {
            return Err(format!(
                "{path}: a gap before params.{name}; put vectors first, on multiples of their size"
            ));
        }
        end += inner.size(module.to_ctx());
        fields.push(Field { name, ty });
    }
    Ok(Some(fields))
}

#[allow(dead_code, reason = "for build.rs")]
fn vector_len(size: VectorSize) -> u32 {
    size as u32
}
