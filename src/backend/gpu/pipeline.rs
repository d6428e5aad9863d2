//! From a recording to pipelines, grids and packed parameters.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use rayon::prelude::*;
use smallvec::SmallVec;

use crate::backend::{Code, Fault, report};
use crate::graph::dtype::DType;
use crate::graph::kernel::{Binding, Body, Command, Kernel, Recording, Slot};

use super::ahead::{Ahead, Job};
use super::codegen::{self, Call};
use super::device::scoped;
use super::{AdapterInfo, disk};

/// What `compile` makes of a recording.
pub struct Plan {
    pub steps: Vec<Step>,
    /// The run's uniform buffer; scalars are filled in with each run.
    pub uniforms: Vec<u8>,
    /// Where scalars go in it.
    pub scalars: Vec<Scalars>,
    /// How many of its pipelines were new; told once.
    pub new_pipelines: AtomicUsize,
    /// Its kernels look at what they store, and each dispatch has status words of its own.
    pub looks: bool,
}

pub struct Scalars {
    pub at: usize,
    /// Where they begin in the run's list.
    pub first: usize,
    pub types: Vec<DType>,
}

pub enum Step {
    Dispatch(Dispatch),
    Copy { from: Slot, to: Slot, bytes: usize },
}

pub struct Dispatch {
    /// Index in the recording.
    pub command: usize,
    pub pipeline: Arc<Pipeline>,
    pub buffers: Vec<Slot>,
    /// Offset and size of the parameters in the uniform buffer, where it has any.
    pub params: Option<(u32, u32)>,
    pub scalars: Option<(u32, u32)>,
    pub workgroups: [u32; 3],
    pub flops: u64,
    pub kernel: Arc<Kernel>,
}

pub struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: Arc<Layout>,
}

/// The bindings of a kernel, as far as they matter to a bind group's layout.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct LayoutKey {
    params: bool,
    scalars: bool,
    written: SmallVec<[bool; 8]>,
    pub status: bool,
}

impl LayoutKey {
    pub fn new(kernel: &Kernel, call: &Call) -> LayoutKey {
        LayoutKey {
            params: !call.params.is_empty(),
            scalars: !kernel.scalars.is_empty(),
            written: kernel.bindings.iter().map(|b| b.written).collect(),
            status: call.status,
        }
    }

    /// What is bound, and where: first the uniforms, then the buffers, then the status words.
    pub fn bindings(&self) -> impl Iterator<Item = (u32, wgpu::BufferBindingType)> {
        use wgpu::BufferBindingType::{Storage, Uniform};
        let uniforms = [(self.params, 0), (self.scalars, 1)];
        let uniforms = uniforms.into_iter().filter(|u| u.0).map(|(_, binding)| (binding, Uniform));
        let written = self.written.iter().copied().chain(self.status.then_some(true));
        let buffers = (2..).zip(written.map(|written| Storage { read_only: !written }));
        uniforms.chain(buffers)
    }

    /// How many of these have offsets that are set with each dispatch.
    pub fn offsets(&self) -> usize {
        usize::from(self.params) + usize::from(self.scalars) + usize::from(self.status)
    }
}

pub struct Layout {
    pub id: usize,
    pub key: LayoutKey,
    pub group: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

impl Layout {
    pub fn new(device: &wgpu::Device, key: &LayoutKey, id: usize) -> Result<Layout, Fault> {
        let status = 2 + key.written.len() as u32;
        let entry = |(binding, ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: binding < 2 || binding == status,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = key.bindings().map(entry).collect();
        let (group, pipeline) = scoped(device, || {
            let group = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                bind_group_layouts: &[Some(&group)],
                ..Default::default()
            });
            (group, pipeline)
        })?;
        Ok(Layout { id, key: key.clone(), group, pipeline })
    }
}

/// All pipelines of a device, by their code.
pub struct Pipelines {
    /// What compiles new ones beside the driver, where that helps.
    pub ahead: Option<Ahead>,
    cache: Option<Cache>,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    layouts: Mutex<HashMap<LayoutKey, Arc<Layout>>>,
}

struct Wanted {
    command: usize,
    layout: LayoutKey,
    call: Call,
}

/// The driver's own cache, kept on disk where the driver has one.
pub struct Cache {
    raw: wgpu::PipelineCache,
    file: String,
    /// The size of what the file has.
    kept: Mutex<usize>,
}

impl Cache {
    fn open(device: &wgpu::Device, info: &AdapterInfo) -> Option<Cache> {
        if !info.features.contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = format!("pipelines-{}", info.id);
        let data = disk::load(&file);
        let descriptor = wgpu::PipelineCacheDescriptor { label: None, data: data.as_deref(), fallback: true };
        // SAFETY: the data are what `keep` got from a cache of the same adapter and driver; `disk` has checked
        // that they are whole.
        let raw = scoped(device, || unsafe { device.create_pipeline_cache(&descriptor) }).ok()?;
        let kept = Mutex::new(data.map_or(0, |d| d.len()));
        Some(Cache { raw, file, kept })
    }

    /// Writes it to disk if there is something new in it.
    fn keep(&self) {
        let mut kept = self.kept.lock();
        if let Some(data) = self.raw.get_data().filter(|data| data.len() > *kept) {
            disk::store(&self.file, &data);
            *kept = data.len();
        }
    }
}

impl Pipelines {
    pub fn new(device: &wgpu::Device, info: &AdapterInfo) -> Pipelines {
        let (ahead, pipelines, layouts) = Default::default();
        Pipelines { ahead, cache: Cache::open(device, info), pipelines, layouts }
    }

    pub fn compile(
        &self,
        device: &wgpu::Device,
        info: &AdapterInfo,
        recording: &Recording,
        looks: bool,
    ) -> Result<Plan, Fault> {
        self.assemble(device, info, recording, wanted(info, recording, looks)?, looks)
    }

    /// Code that comes from elsewhere, to be run over slots `0..bindings`.
    pub fn compile_code(
        &self,
        device: &wgpu::Device,
        info: &AdapterInfo,
        code: &[Code],
        bindings: &[Binding],
        types: &[DType],
    ) -> Result<Plan, Fault> {
        let kernel = Arc::new(Kernel {
            body: Body::Map(vec![]),
            bindings: bindings.to_vec(),
            scalars: types.to_vec(),
            label: "replay".into(),
            caller: std::panic::Location::caller(),
        });
        let wanted = code.iter().map(|code| Wanted {
            command: 0,
            layout: LayoutKey {
                params: !code.params.is_empty(),
                scalars: !types.is_empty(),
                written: bindings.iter().map(|b| b.written).collect(),
                status: code.status,
            },
            call: Call {
                wgsl: code.text.clone(),
                entry: code.entry.clone().into(),
                params: code.params.clone(),
                workgroups: code.workgroups,
                status: code.status,
                flops: 0,
            },
        });
        let buffers = (0..bindings.len() as Slot).collect();
        let recording = Recording { commands: vec![Command::Dispatch { kernel, buffers, scalars: 0 }] };
        self.assemble(device, info, &recording, wanted.collect(), false)
    }

    fn assemble(
        &self,
        device: &wgpu::Device,
        info: &AdapterInfo,
        recording: &Recording,
        wanted: Vec<Wanted>,
        looks: bool,
    ) -> Result<Plan, Fault> {
        let mut missing: Vec<&Wanted> = vec![];
        {
            let known = self.pipelines.lock();
            let mut seen = std::collections::HashSet::new();
            for w in &wanted {
                if !known.contains_key(&key(&w.call)) && seen.insert(key(&w.call)) {
                    missing.push(w);
                }
            }
        }
        let label = |w: &Wanted| kernel(recording, w.command).map_or("", |k| &k.label);
        if let Some(ahead) = &self.ahead {
            let job =
                |w: &&Wanted| Job { label: label(w).into(), call: w.call.clone(), layout: w.layout.clone() };
            ahead.compile(missing.iter().map(job));
        }
        let made: Vec<(String, Pipeline)> = missing
            .par_iter()
            .map(|w| {
                let layout = self.layout(device, &w.layout)?;
                let pipeline = build(device, self.cache.as_ref(), label(w), &w.call, layout);
                Ok((key(&w.call), pipeline.map_err(|f| Fault { command: Some(w.command), ..f })?))
            })
            .collect::<Result<_, Fault>>()?;
        let new_pipelines = AtomicUsize::new(made.len());
        if !made.is_empty()
            && let Some(cache) = &self.cache
        {
            cache.keep();
        }
        let mut known = self.pipelines.lock();
        known.extend(made.into_iter().map(|(key, pipeline)| (key, Arc::new(pipeline))));

        let align = info.limits.min_uniform_buffer_offset_alignment as usize;
        let mut plan = Plan { steps: vec![], uniforms: vec![], scalars: vec![], new_pipelines, looks };
        let mut calls = wanted.into_iter().peekable();
        // Equal parameters are stored once.
        let mut blocks: HashMap<Vec<u8>, (u32, u32)> = HashMap::new();
        for (command, step) in recording.commands.iter().enumerate() {
            let (kernel, buffers, first) = match step {
                Command::Copy { bytes: 0, .. } => continue,
                &Command::Copy { from, to, bytes } => {
                    plan.steps.push(Step::Copy { from, to, bytes });
                    continue;
                }
                Command::Dispatch { kernel, buffers, scalars } => (kernel, buffers, *scalars),
            };
            let mut scalars = None;
            if !kernel.scalars.is_empty() && calls.peek().is_some_and(|w| w.command == command) {
                let at = reserve(&mut plan.uniforms, (kernel.scalars.len() * 4).next_multiple_of(16), align);
                plan.scalars.push(Scalars { at: at.0 as usize, first, types: kernel.scalars.clone() });
                scalars = Some(at);
            }
            while let Some(Wanted { call, .. }) = calls.next_if(|w| w.command == command) {
                let Some(pipeline) = known.get(&key(&call)).cloned() else { continue };
                let params = (!call.params.is_empty()).then(|| {
                    *blocks.entry(call.params.clone()).or_insert_with(|| {
                        let at = reserve(&mut plan.uniforms, call.params.len().next_multiple_of(16), align);
                        plan.uniforms[at.0 as usize..][..call.params.len()].copy_from_slice(&call.params);
                        at
                    })
                });
                plan.steps.push(Step::Dispatch(Dispatch {
                    command,
                    pipeline,
                    buffers: buffers.clone(),
                    params,
                    scalars,
                    workgroups: call.workgroups,
                    flops: call.flops,
                    kernel: kernel.clone(),
                }));
            }
        }
        Ok(plan)
    }

    fn layout(&self, device: &wgpu::Device, key: &LayoutKey) -> Result<Arc<Layout>, Fault> {
        let mut layouts = self.layouts.lock();
        if let Some(known) = layouts.get(key) {
            return Ok(known.clone());
        }
        let layout = Arc::new(Layout::new(device, key, layouts.len())?);
        layouts.insert(key.clone(), layout.clone());
        Ok(layout)
    }
}

fn kernel(recording: &Recording, command: usize) -> Option<&Arc<Kernel>> {
    match recording.commands.get(command)? {
        Command::Dispatch { kernel, .. } => Some(kernel),
        Command::Copy { .. } => None,
    }
}

/// One text may have several entry points.
fn key(call: &Call) -> String {
    format!("{}\n{}", call.entry, call.wgsl)
}

fn wanted(info: &AdapterInfo, recording: &Recording, looks: bool) -> Result<Vec<Wanted>, Fault> {
    let mut out = vec![];
    for (command, step) in recording.commands.iter().enumerate() {
        let Command::Dispatch { kernel, .. } = step else { continue };
        let calls = codegen::generate(kernel, info, looks);
        for call in calls.map_err(|f| Fault { command: Some(command), ..f })? {
            let layout = LayoutKey::new(kernel, &call);
            out.push(Wanted { command, layout, call });
        }
    }
    Ok(out)
}

/// Makes room in the uniform buffer; returns offset and size.
fn reserve(uniforms: &mut Vec<u8>, bytes: usize, align: usize) -> (u32, u32) {
    let at = uniforms.len().next_multiple_of(align.max(16));
    uniforms.resize(at + bytes, 0);
    (at as u32, bytes as u32)
}

pub fn build(
    device: &wgpu::Device,
    cache: Option<&Cache>,
    label: &str,
    call: &Call,
    layout: Arc<Layout>,
) -> Result<Pipeline, Fault> {
    if report::level() >= 4 {
        eprintln!("// kernel {label}, {}\n{}", call.entry, call.wgsl);
    }
    #[cfg(test)]
    super::abroad::check(&call.wgsl).map_err(|message| Fault {
        kind: crate::error::ErrorKind::Backend,
        message,
        command: None,
    })?;
    let raw = scoped(device, || {
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(label),
            source: wgpu::ShaderSource::Wgsl(call.wgsl.as_str().into()),
        });
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(label),
            layout: Some(&layout.pipeline),
            module: &module,
            entry_point: Some(&call.entry),
            // Kernels write what they read.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: cache.map(|c| &c.raw),
        })
    });
    let raw = raw.map_err(|f| Fault { message: format!("kernel {label}: {}", f.message), ..f })?;
    Ok(Pipeline { raw, layout })
}
