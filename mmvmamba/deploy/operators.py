"""Our operators as ONNX functions: each is exported by itself, from its decomposition, once for every signature.

A model's graph keeps them as single nodes until its end; that spares the exporter the algebra of sizes that are sizes
of sizes (most of the time that it takes), and the graph of a block is exported once, however deep the network is.
"""

import functools
import inspect

import torch

from mmvmamba.kernels import registration

from . import alone

DOMAIN = 'mmvmamba'
_SAMPLE_SIZES = (5, 7, 11, 13, 17)  # of what is dynamic: no two alike and none 1, which exporters take for fixed


class Functions:
    """The functions that one model needs.

    Args:
        opset: version of ONNX's operators.
    """

    def __init__(self, opset: int):
        self._opset = opset
        self._made: dict[tuple, object] = {}

    def table(self) -> dict:
        """The argument `custom_translation_table` of `torch.onnx.export`."""
        return {operator.op: self._translation(operator) for operator in registration.operators.values()}

    def add_to(self, model) -> None:
        """Replace the nodes of our operators in an `onnx_ir.Model` by the operators that they stand for."""
        from onnx_ir.passes import common

        if self._made:
            model.opset_imports[DOMAIN] = 1
            for _, _, function in self._made.values():
                model.functions[function.identifier()] = function
            common.InlinePass()(model)
            model.opset_imports.pop(DOMAIN, None)

    def difference(self) -> float:
        """See `alone.difference`: of each function, run by onnxruntime; after `add_to`."""
        return alone.difference(
            (operator, signature, functools.partial(self._run, function))
            for operator, signature, function in self._made.values()
        )

    def _run(self, function, arguments) -> torch.Tensor:
        """What onnxruntime makes of a function with these arguments."""
        import onnx_ir
        import onnxruntime
        from onnx_ir.passes import common

        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        inputs = [onnx_ir.val(f'input{i}', onnx_ir.DataType.FLOAT, t.shape) for i, t in enumerate(tensors)]
        node = onnx_ir.Node(DOMAIN, function.name, inputs, version=1)
        node.outputs[0].name, node.outputs[0].type = 'output', onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
        graph = onnx_ir.Graph(
            inputs, node.outputs, nodes=[node], opset_imports={'': self._opset, DOMAIN: 1}, name=function.name
        )
        model = onnx_ir.Model(graph, ir_version=10, functions=[function.clone()])
        common.InlinePass()(model)
        model.opset_imports.pop(DOMAIN, None)
        content = onnx_ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
        return torch.from_numpy(session.run(None, {f'input{i}': t.numpy() for i, t in enumerate(tensors)})[0])

    def _translation(self, operator):
        names = [argument.name for argument in operator.op._schema.arguments]

        def translate(*arguments):
            import onnx_ir
            import onnxscript

            arguments = arguments[:-1]  # without the backend
            function = self._function(operator, arguments)
            tensors = [value for value in arguments if isinstance(value, onnx_ir.Value)]
            node = onnx_ir.Node(DOMAIN, function.name, tensors, version=1)
            onnxscript.evaluator.default().nodes.append(node)
            return node.outputs[0]

        # the exporter reads the signature: what has no annotation is a tensor
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        translate.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        translate.__name__ = operator.name
        return translate

    def _function(self, operator, arguments):
        signature = _signature(arguments)
        key = (operator.name, signature)
        if key not in self._made:
            name = f'{operator.name}_{len(self._made)}'
            self._made[key] = operator, signature, _exported(operator, signature, name, self._opset)
        return self._made[key][2]


def _signature(arguments) -> alone.Signature:
    import onnx_ir

    known, signature = {}, []
    for value in arguments:
        if not isinstance(value, onnx_ir.Value):
            signature.append(('option', value))
            continue
        sizes = [
            size if isinstance(size, int) else known.setdefault(str(size), f'?{len(known)}') for size in value.shape
        ]
        signature.append(('tensor', value.dtype.name.lower(), tuple(sizes)))
    return tuple(signature)


class _Alone(torch.nn.Module):
    """One operator with its options as a module of its tensors."""

    def __init__(self, operator, signature):
        super().__init__()
        self._operator, self._signature = operator, signature

    def forward(self, *tensors):
        tensors = iter(tensors)
        return self._operator.decomposed(*[next(tensors) if s[0] == 'tensor' else s[1] for s in self._signature])


def _square_root(size):
    import onnxscript

    opset = onnxscript.evaluator.default().opset
    return opset.Sqrt(opset.Cast(size, to=1))  # to float32


def _exported(operator, signature, name, opset):
    """An `onnx_ir.Function` that computes one operator."""
    import onnx_ir

    samples, shapes = [], []
    for _, dtype, sizes in (entry for entry in signature if entry[0] == 'tensor'):
        dynamic = {i: int(size[1:]) for i, size in enumerate(sizes) if isinstance(size, str)}
        concrete = [_SAMPLE_SIZES[dynamic[i]] if i in dynamic else size for i, size in enumerate(sizes)]
        samples.append(torch.zeros(concrete, dtype=alone.DTYPES[dtype]))
        shapes.append(dict.fromkeys(dynamic, torch.export.Dim.AUTO))
    module = _Alone(operator, signature)
    with torch.no_grad():
        program = torch.export.export(module, tuple(samples), dynamic_shapes=(tuple(shapes),), strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            custom_translation_table={torch.sym_sqrt: _square_root},  # which the exporter does not know
            verbose=False,
        )
    graph = exported.model.graph
    constants = [
        onnx_ir.Node('', 'Constant', [], [onnx_ir.AttrTensor('value', value.const_value)], outputs=[value])
        for value in list(graph.initializers.values())
    ]
    graph.initializers.clear()
    for node in reversed(constants):
        graph.insert_before(graph[0], node)
    _forget_shapes(graph)
    graph.opset_imports.setdefault('', opset)
    return onnx_ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _forget_shapes(graph) -> None:
    """Drop the sizes that the exporter noted: their symbols mean other sizes where the function is called."""
    import onnx_ir

    for value in graph.inputs:
        value.shape = None
    for node in graph:
        for value in node.outputs:
            value.shape = None
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                _forget_shapes(attribute.value)
