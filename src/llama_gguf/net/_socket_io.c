/* send(2) and recv(2) of a socket that does not block, for transport.py.

   os.read and os.write release the interpreter's lock around each call, allocate what a read may
   return at most, and reach a socket through the layer of files. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <sys/socket.h>

#define MOST_BYTES 65536

static PyObject *
failed(void)
{
    return PyErr_SetFromErrno(PyExc_OSError); /* BlockingIOError for EAGAIN, and so on */
}

static PyObject *
read_socket(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    static char buffer[MOST_BYTES]; /* the interpreter's lock is held until it is copied */
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "read(fd, size)");
    long fd = PyLong_AsLong(arguments[0]), size = PyLong_AsLong(arguments[1]);
    if (PyErr_Occurred())
        return NULL;
    if (size < 0 || size > MOST_BYTES)
        return PyErr_Format(PyExc_ValueError, "size must be from 0 to %d", MOST_BYTES);
    ssize_t got;
    do
        got = recv((int)fd, buffer, (size_t)size, 0);
    while (got < 0 && errno == EINTR);
    return got < 0 ? failed() : PyBytes_FromStringAndSize(buffer, got);
}

static PyObject *
write_socket(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "write(fd, data)");
    long fd = PyLong_AsLong(arguments[0]);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer data;
    if (PyObject_GetBuffer(arguments[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    ssize_t sent;
    do
        sent = send((int)fd, data.buf, (size_t)data.len, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    int error = errno;
    PyBuffer_Release(&data);
    errno = error;
    return sent < 0 ? failed() : PyLong_FromSsize_t(sent);
}

static PyMethodDef functions[] = {
    {"read", (PyCFunction)(void (*)(void))read_socket, METH_FASTCALL, "As os.read."},
    {"write", (PyCFunction)(void (*)(void))write_socket, METH_FASTCALL, "As os.write."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_socket_io", "Non-blocking I/O of sockets.", 0, functions,
};

PyMODINIT_FUNC
PyInit__socket_io(void)
{
    return PyModuleDef_Init(&definition);
}
